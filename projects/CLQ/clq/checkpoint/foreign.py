"""What converters of other code bases share: reading their files, and whether the result is a whole detector."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from clq.config import setup_cfg
from clq.errors import UserError, blamed_on

ROOT = Path(__file__).parents[4]


class Converted(NamedTuple):
    """A detector of another code base under this project's names.

    Attributes:
        weights: of a whole :class:`~clq.modeling.meta_arch.clq.CLQ`.
        configs: the config of its variant, relative to the repository; several where the weights do not tell which.
        keys: the keys in which this detector differs from these configs, with its values.
    """

    weights: dict[str, Tensor]
    configs: tuple[str, ...]
    keys: dict[str, object]


def read_checkpoint(path: str, source: str, content: str) -> dict:
    """The content of a file that :func:`torch.save` wrote; nothing in it executes.

    Args:
        path: of the file.
        source: where it should come from, for errors.
        content: what to keep of a checkpoint ``c`` that holds more than weights, as Python.

    Raises:
        UserError: no such file, no checkpoint, or one that holds more than weights and plain values.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; give a checkpoint of {source}.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # reading bytes that are no checkpoint can raise anything
        raise UserError(
            f"{path}: no checkpoint of weights and plain values alone. If you trust it, c = torch.load(..., "
            f"weights_only=False), then torch.save({content}, ...), and convert that."
        ) from e
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: holds a {type(checkpoint).__name__}, not the weights of a detector.")
    return checkpoint


def weights_of(path: str, checkpoint: dict, source: str) -> dict[str, Tensor]:
    """The weights of a checkpoint, which may lie under ``state_dict``.

    Raises:
        UserError: something else is among them.
    """
    weights = checkpoint.get("state_dict", checkpoint)
    if not isinstance(weights, dict):
        raise UserError(f'{path}: holds a {type(weights).__name__} as "state_dict", not the weights of a detector.')
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: holds {key!r}, which is no weight; give a checkpoint of {source}.")
    return weights


def check_finite(path: str, weights: Mapping[str, Tensor]) -> None:
    """Raises UserError if a weight is infinite or NaN."""
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"{path}: {len(broken)} of its weights are not finite: {', '.join(broken)}.")


def config_with(config: str, keys: Mapping[str, object]) -> CfgNode:
    """A config of this project, named relative to the repository, with these keys set."""
    return setup_cfg(str(ROOT / config), ["MODEL.DEVICE", "cpu", *(word for pair in keys.items() for word in pair)])


def differing(cfg: Mapping, keys: Mapping[str, object]) -> dict[str, object]:
    """Those of the keys to which a config gives another value."""
    found = {}
    for key, value in keys.items():
        node = cfg
        for part in key.split("."):
            node = node[part]
        if node != value:
            found[key] = value
    return found


def check_whole(path: str, config: str, keys: Mapping[str, object], weights: Mapping[str, Tensor]) -> None:
    """Holds names and shapes of weights against those of the detector that a config and these keys make.

    Raises:
        UserError: weights that are missing, that it does not have, or of another shape.
    """
    cfg = config_with(config, keys)
    with torch.device("meta"), blamed_on(f"{path}, sizes of its weights"):  # no memory for values
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    missing = wanted.keys() - weights.keys()
    if missing:
        raise UserError(f"{path}: {len(missing)} weights of its detector are missing: {', '.join(sorted(missing))}.")
    for key, value in weights.items():
        if key not in wanted:
            raise UserError(f"{path}: {key} is one weight more than {config} has.")
        if tuple(value.shape) != wanted[key]:
            shapes = f"{list(value.shape)} instead of {list(wanted[key])}"
            raise UserError(f"{path}: {key} is of another shape than {config} has, {shapes}.")
