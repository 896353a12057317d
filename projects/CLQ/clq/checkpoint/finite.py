"""Whether the tensors of a checkpoint are finite."""

from collections.abc import Mapping

import torch


def find_nonfinite(state: object, name: str = "") -> str | None:
    """Finds a tensor with a NaN or infinite value.

    Args:
        state: a tensor, or mappings and lists that hold tensors at any depth, such as a state_dict.
        name: name of the state itself, with which the names of its parts begin.

    Returns:
        The name of the first such tensor, such as ``model.head.conv.weight``; None where all values are finite.
    """
    if isinstance(state, torch.Tensor):
        return name if state.is_floating_point() and not torch.isfinite(state).all() else None
    if isinstance(state, Mapping):
        parts = list(state.items())
    else:
        parts = list(enumerate(state)) if isinstance(state, (list, tuple)) else []
    for key, part in parts:
        if found := find_nonfinite(part, f"{name}.{key}" if name else str(key)):
            return found
    return None
