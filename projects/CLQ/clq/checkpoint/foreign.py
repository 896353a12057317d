"""What converters of other code bases share: reading their files, and whether the result is a whole detector."""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from clq.config import setup_cfg
from clq.errors import UserError, blamed_on
from clq.utils.config_tree import get_key

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[4]
_FLOATS = torch.float16, torch.bfloat16, torch.float32, torch.float64
_INTEGERS = torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64  # of batch counters alone


_SHOWN_NAMES, _SHOWN_CHARACTERS = 10, 200  # in a message, which is one readable line


def brief(value: object) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def listed(names: Iterable[str]) -> str:
    """Names in one line: odd ones as Python writes them, and of many the first."""
    names = list(names)
    shown = [name if name.isprintable() and 0 < len(name) <= _SHOWN_CHARACTERS else brief(name) for name in names]
    more = [f"and {len(names) - _SHOWN_NAMES} more"] if len(names) > _SHOWN_NAMES else []
    return ", ".join(shown[:_SHOWN_NAMES] + more)


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
        raise UserError(f"{path}: holds a {type(checkpoint).__name__}, not weights; give a checkpoint of {source}.")
    return checkpoint


def weights_of(path: str, checkpoint: dict, source: str) -> dict[str, Tensor]:
    """The weights of a checkpoint, which may lie under ``state_dict``, in float32.

    Raises:
        UserError: something else is among them, or a tensor that no weight is saved as.
    """
    weights = checkpoint.get("state_dict", checkpoint)
    if not isinstance(weights, dict):
        kind = type(weights).__name__
        raise UserError(f'{path}: holds a {kind} as "state_dict", not weights; give a checkpoint of {source}.')
    if not weights:
        raise UserError(f"{path}: holds no weights; give a checkpoint of {source}.")
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: holds {brief(key)}, which is no weight; give a checkpoint of {source}.")
        if fault := _fault(key, value):
            raise UserError(f"{path}: {listed([key])} is {fault}; save the weights as plain float32 tensors.")
    others = {str(w.dtype).removeprefix("torch.") for w in weights.values() if w.is_floating_point()} - {"float32"}
    if others:
        logger.warning("%s: holds weights in %s, which become float32.", path, ", ".join(sorted(others)))
    return {key: w.detach().float() if w.is_floating_point() else w for key, w in weights.items()}


def _fault(key: str, value: Tensor) -> str | None:
    """What a tensor is that cannot be read as a weight; None of one that can."""
    if value.is_nested or value.layout != torch.strided:
        return "a nested tensor" if value.is_nested else f"a {str(value.layout).removeprefix('torch.')} tensor"
    if value.device.type != "cpu":
        return f"a tensor without values ({value.device.type})"
    if value.dtype in _FLOATS or (value.dtype in _INTEGERS and key.endswith("num_batches_tracked")):
        return None
    return f"of {str(value.dtype).removeprefix('torch.')}, as no weight is"


def check_finite(path: str, weights: Mapping[str, Tensor]) -> None:
    """Raises UserError if a weight is infinite or NaN."""
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{path}: {len(broken)} of its weights are not finite: {listed(broken)}; its training diverged or the file "
            "is damaged, so give an earlier checkpoint or fetch it again."
        )


@contextlib.contextmanager
def sizes_told(path: str, source: str) -> Iterator[None]:
    """Makes a UserError of what reading sizes from absent or odd weights raises."""
    try:
        yield
    except KeyError as e:
        raise UserError(
            f"{path}: lacks {e.args[0]}, without which its size cannot be told; give the checkpoint of a whole "
            f"detector of {source}."
        ) from e
    except (ArithmeticError, IndexError, TypeError) as e:  # of a weight with too few dimensions, or empty ones
        raise UserError(
            f"{path}: its weights are of shapes that no detector's are of; give an undamaged checkpoint of {source}."
        ) from e


def config_with(config: str, keys: Mapping[str, object]) -> CfgNode:
    """A config of this project, named relative to the repository, with these keys set."""
    return setup_cfg(str(ROOT / config), ["MODEL.DEVICE", "cpu", *(word for pair in keys.items() for word in pair)])


def differing(cfg: Mapping, keys: Mapping[str, object]) -> dict[str, object]:
    """Those of the keys to which a config gives another value."""
    return {key: value for key, value in keys.items() if get_key(cfg, key) != value}


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
        raise UserError(
            f"{path}: {len(missing)} weights of its detector are missing: {listed(sorted(missing))}; give the "
            "checkpoint of the whole detector."
        )
    for key, value in weights.items():
        if key not in wanted:
            raise UserError(
                f"{path}: {listed([key])} is one weight more than {config} has; give a checkpoint of that detector."
            )
        if tuple(value.shape) != wanted[key]:
            raise UserError(
                f"{path}: {key} is of another shape than {config} has, {list(value.shape)} instead of "
                f"{list(wanted[key])}, and no key of it makes up for that; give a checkpoint of that detector."
            )
