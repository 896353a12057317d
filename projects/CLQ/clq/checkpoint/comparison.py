"""Comparison of checkpoints, bit by bit."""

from collections.abc import Iterator
from pathlib import Path

import torch

from clq.checkpoint.detector_info import KEY


def differences(result: object, expected: object, name: str = "") -> Iterator[str]:
    """Yields the names of all entries of a checkpoint that are not equal bit by bit."""
    if isinstance(result, dict) and isinstance(expected, dict) and result.keys() == expected.keys():
        for key in expected:
            yield from differences(result[key], expected[key], f"{name}/{key}")
    elif isinstance(result, (list, tuple)) and isinstance(expected, (list, tuple)) and len(result) == len(expected):
        for i, pair in enumerate(zip(result, expected, strict=True)):
            yield from differences(*pair, f"{name}/{i}")
    elif isinstance(result, torch.Tensor) and isinstance(expected, torch.Tensor):
        same = result.dtype == expected.dtype and result.shape == expected.shape
        if not same or result.numpy().tobytes() != expected.numpy().tobytes():
            yield name
    elif type(result) is not type(expected) or result != expected:
        yield name


def compare(folder: Path, reference: Path) -> list[str]:
    """Compares the final files of a training with those of the uninterrupted one; returns what differs."""
    found = []
    for path in sorted(reference.glob("model_final*.pth")):
        if not (folder / path.name).is_file():
            found.append(f"{path.name} is missing")
            continue
        pair = [torch.load(p, weights_only=True) for p in (folder / path.name, path)]
        for checkpoint in pair:  # the best evaluation so far: the two trainings evaluate at other iterations
            checkpoint.get("trainer", {}).get("hooks", {}).pop("BestCheckpoint", None)
            checkpoint.pop(KEY, None)  # the config: the two trainings differ in what does not change the weights
        found += differences(pair[0], pair[1], path.name)
    return found
