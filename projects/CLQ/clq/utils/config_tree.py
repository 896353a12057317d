"""Configs as trees: values by their dotted keys."""

import functools
import operator
from collections.abc import Mapping


def get_key(cfg: Mapping, key: str) -> object:
    """The value or group of keys that a dotted key, such as ``"BOX.LOSS_WEIGHT"``, names in a config or a part of it.

    Raises:
        KeyError: there is no such key.
    """
    return functools.reduce(operator.getitem, key.split("."), cfg)
