"""Looks up values of nested configs by dotted keys."""

import functools
import operator
from collections.abc import Mapping


def get_key(cfg: Mapping, key: str) -> object:
    """Returns the value, or the group of keys, that a dotted key names.

    Args:
        cfg: config, or a group of it.
        key: name relative to ``cfg``, for example ``"BOX.LOSS_WEIGHT"``.

    Raises:
        KeyError: the key does not exist.
    """
    return functools.reduce(operator.getitem, key.split("."), cfg)
