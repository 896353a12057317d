"""What a file of weights may hold: the layouts of several projects, and the values that can be weights."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from clq.checkpoint.backbone_names import TYPICAL_KEYS
from clq.errors import UserError

_INTEGERS = torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool


def checkpoint_of(content: object, filename: str, source: str) -> dict[str, Any]:
    """The content of a file in the layout of Detectron2's checkpoints.

    The formats of Caffe2 (``.pkl``), pycls (``.pyth``), torchvision and OpenMMLab's backbones are recognized.

    Args:
        content: what :func:`~clq.checkpoint.storage.read_weights` returned.
        filename: name of the file, whose ending tells the formats of Caffe2 and pycls apart.
        source: name of the file in messages, as the user gave it.

    Returns:
        The weights by name as ``model``, for Caffe2 and pycls with ``matching_heuristics`` and ``__author__``, and what
        else a checkpoint of Detectron2 holds.

    Raises:
        UserError: the file holds no weights, or something else among them.
    """
    checkpoint: dict[str, Any] = _by_layout(content, filename) if isinstance(content, dict) else {"model": None}
    weights = checkpoint["model"]
    if not isinstance(weights, dict) or not all(isinstance(w, (Tensor, np.ndarray)) for w in weights.values()):
        raise UserError(
            f"{source}: holds no weights of Detectron2 or torchvision; convert those of MMDetection with "
            "`clq convert` or clq.convert_mmdet."
        )
    if not weights:
        raise UserError(f"{source}: holds no weights; give a state_dict saved by torch.save as MODEL.WEIGHTS.")
    checkpoint["model"] = {name: _weight(source, name, value) for name, value in weights.items()}
    # Detectron2 compares these values, which could be arrays.
    for key, kind in (("matching_heuristics", bool), ("__author__", str)):
        if not isinstance(checkpoint.get(key, kind()), kind):
            del checkpoint[key]
    return checkpoint


def is_backbone(weights: object) -> bool:
    """Whether these are weights of a backbone under the names of torchvision or MMDetection."""
    return isinstance(weights, dict) and any(key in weights for key in TYPICAL_KEYS)


def _by_layout(content: dict, filename: str) -> dict[str, Any]:
    for ending, key, author, ignored, is_ours in (
        (".pkl", "blobs", "Caffe2", "_momentum", {"model", "__author__"} <= content.keys()),
        (".pyth", "model_state", "pycls", "num_batches_tracked", "model_state" not in content),
    ):
        if filename.endswith(ending) and not is_ours:
            weights = content.get(key, content)
            if isinstance(weights, dict):
                weights = {k: v for k, v in weights.items() if not str(k).endswith(ignored)}
            return {"model": weights, "__author__": author, "matching_heuristics": True}
    if "model" in content:
        return dict(content)
    inner = content.get("state_dict")  # OpenMMLab's files of a backbone may have their weights there
    return {"model": inner if is_backbone(inner) else content}


def _weight(source: str, name: object, value: Tensor | np.ndarray) -> Tensor:
    """A weight as a tensor; raises UserError if it cannot be one."""
    found: Tensor | None = None
    if isinstance(value, Tensor):
        found, fault = value, fault_of(value)
    else:
        try:
            found = torch.from_numpy(np.ascontiguousarray(value, value.dtype.newbyteorder("=")).reshape(value.shape))
            fault = fault_of(found)
        except (TypeError, ValueError):  # objects, texts, dates and the like
            fault = f"an array of {value.dtype}, which weights cannot be"
    if found is None or fault or not isinstance(name, str):
        shown = str(name) if isinstance(name, (str, int)) else f"a {type(name).__name__}"
        fault = fault or "no name of a weight"
        raise UserError(f"{source}: {shown[:200]} is {fault}; save the weights as plain tensors with torch.save.")
    return found


def fault_of(value: Tensor) -> str | None:
    """Describes a tensor that cannot be a weight; None for one that can."""
    if value.is_nested or value.layout != torch.strided:
        return "a nested tensor" if value.is_nested else f"a {str(value.layout).removeprefix('torch.')} tensor"
    if value.device.type != "cpu":
        return f"a tensor without values ({value.device.type})"
    if value.is_quantized or not (value.is_floating_point() or value.dtype in _INTEGERS):
        return f"of {str(value.dtype).removeprefix('torch.')}, which weights cannot be"
    return None
