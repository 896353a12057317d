"""Shared by the converters from other code bases: reading of files, checks of weights, and error messages."""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from clq import configs
from clq.checkpoint.content import fault_of
from clq.checkpoint.storage import DamagedFile, ForbiddenObjects, read_weights
from clq.config import setup_cfg
from clq.errors import UserError, blamed_on
from clq.utils.config_tree import get_key

logger = logging.getLogger(__name__)

_FLOATS = torch.float16, torch.bfloat16, torch.float32, torch.float64
_INTEGERS = torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64  # only the counters of batches have these
# The most names, and the most characters of a value, in an error message, which is one readable line.
_SHOWN_NAMES, _SHOWN_CHARACTERS = 10, 200


def brief(value: object) -> str:
    """Formats a value as Python writes it, and shortens it if it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def listed(names: Iterable[str]) -> str:
    """Formats names in one line: unprintable ones as Python writes them, and only the first ones if there are many."""
    names = list(names)
    shown = [name if name.isprintable() and 0 < len(name) <= _SHOWN_CHARACTERS else brief(name) for name in names]
    more = [f"and {len(names) - _SHOWN_NAMES} more"] if len(names) > _SHOWN_NAMES else []
    return ", ".join(shown[:_SHOWN_NAMES] + more)


class Converted(NamedTuple):
    """A detector from another code base, converted for this project.

    Attributes:
        weights: weights of a whole :class:`~clq.modeling.meta_arch.clq.CLQ`, by name.
        configs: name of the variant's config, ``configs/...``; several names if the weights fit several
            configs.
        keys: config keys in which the detector differs from these configs, with its values.
    """

    weights: dict[str, Tensor]
    configs: tuple[str, ...]
    keys: dict[str, object]


def read_checkpoint(path: str, source: str, content: str) -> dict:
    """Reads a file that :func:`torch.save` wrote, without executing anything in it.

    Args:
        path: path of the file.
        source: name of the code base that it should come from, for error messages.
        content: Python expression for what to keep of a checkpoint ``c`` with other objects, for error messages.

    Raises:
        UserError: the file does not exist, is not a checkpoint, or holds more than weights and plain values.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; give a checkpoint of {source}.")
    try:
        checkpoint = read_weights(path, path)
    except DamagedFile as e:
        raise UserError(f"{path}: is damaged or not a checkpoint ({e}); give a checkpoint of {source}.") from e
    except ForbiddenObjects as e:
        raise UserError(
            f"{path}: is not a checkpoint with weights and plain values only. If you trust it, run c = torch.load(..., "
            f"weights_only=False) and torch.save({content}, ...), and convert the new file."
        ) from e
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: holds a {type(checkpoint).__name__}, not weights; give a checkpoint of {source}.")
    return checkpoint


def weights_of(path: str, checkpoint: dict, source: str) -> dict[str, Tensor]:
    """Returns the weights of a checkpoint in float32.

    Args:
        path: path of the file, for messages.
        checkpoint: content of the file, whose weights may be under ``state_dict``.
        source: name of the code base that it should come from, for error messages.

    Raises:
        UserError: the checkpoint holds something else among the weights, or a tensor that cannot be a weight.
    """
    weights = checkpoint.get("state_dict", checkpoint)
    if not isinstance(weights, dict):
        kind = type(weights).__name__
        raise UserError(f'{path}: holds a {kind} as "state_dict", not weights; give a checkpoint of {source}.')
    if not weights:
        raise UserError(f"{path}: holds no weights; give a checkpoint of {source}.")
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: holds {brief(key)}, which is not a weight; give a checkpoint of {source}.")
        if fault := _fault(key, value):
            raise UserError(f"{path}: {listed([key])} is {fault}; save the weights as plain float32 tensors.")
    others = {str(w.dtype).removeprefix("torch.") for w in weights.values() if w.is_floating_point()} - {"float32"}
    if others:
        logger.warning("%s: holds weights in %s, which are converted to float32.", path, ", ".join(sorted(others)))
    return {key: w.detach().float() if w.is_floating_point() else w for key, w in weights.items()}


def _fault(key: str, value: Tensor) -> str | None:
    """Describes a tensor that cannot be a weight; None for one that can."""
    if fault := fault_of(value):
        return fault
    if value.dtype in _FLOATS or (value.dtype in _INTEGERS and key.endswith("num_batches_tracked")):
        return None
    return f"of {str(value.dtype).removeprefix('torch.')}, which weights cannot be"


def check_finite(path: str, weights: Mapping[str, Tensor]) -> None:
    """Raises :class:`UserError` if a weight is infinite or NaN."""
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{path}: {len(broken)} of its weights are not finite: {listed(broken)}; the training diverged or the file "
            "is damaged, so give an earlier checkpoint or download it again."
        )


@contextlib.contextmanager
def reporting_unexpected_weights(path: str, source: str) -> Iterator[None]:
    """Turns the exceptions of code that reads sizes from missing or malformed weights into a :class:`UserError`."""
    try:
        yield
    except KeyError as e:
        raise UserError(
            f"{path}: lacks {e.args[0]}, without which its size is not known; give the checkpoint of a whole "
            f"detector of {source}."
        ) from e
    except (ArithmeticError, IndexError, TypeError) as e:  # a weight has too few dimensions or is empty
        raise UserError(
            f"{path}: its weights have shapes that no detector has; give an undamaged checkpoint of {source}."
        ) from e


def config_with(config: str, keys: Mapping[str, object]) -> CfgNode:
    """Loads a config of this project.

    Args:
        config: name of the config, ``configs/...``.
        keys: config keys to set, with their values.
    """
    return setup_cfg(configs.path(config), ["MODEL.DEVICE", "cpu", *(word for pair in keys.items() for word in pair)])


def differing(cfg: Mapping, keys: Mapping[str, object]) -> dict[str, object]:
    """Returns those of the given keys and values that differ from the values of a config."""
    return {key: value for key, value in keys.items() if get_key(cfg, key) != value}


def check_complete(path: str, config: str, keys: Mapping[str, object], weights: Mapping[str, Tensor]) -> None:
    """Compares names and shapes of weights with those of the detector that a config describes.

    Args:
        path: path of the checkpoint, for error messages.
        config: name of the config, ``configs/...``.
        keys: config keys to set, with their values.
        weights: converted weights, by name.

    Raises:
        UserError: weights are missing, are not in the detector, or have another shape.
    """
    cfg = config_with(config, keys)
    with torch.device("meta"), blamed_on(f"{path}, sizes of its weights"):  # without memory for the values
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    missing = wanted.keys() - weights.keys()
    if missing:
        raise UserError(
            f"{path}: {len(missing)} weights of the detector are missing: {listed(sorted(missing))}; give the "
            "checkpoint of the whole detector."
        )
    for key, value in weights.items():
        if key not in wanted:
            raise UserError(
                f"{path}: {listed([key])} is a weight that {config} does not have; give a checkpoint of that detector."
            )
        if tuple(value.shape) != wanted[key]:
            raise UserError(
                f"{path}: {key} has another shape than in {config}, {list(value.shape)} instead of "
                f"{list(wanted[key])}, and no config key can change that; give a checkpoint of that detector."
            )
