"""How weights differ from those of a model."""

from collections.abc import Sequence
from typing import NamedTuple


class Mismatch(NamedTuple):
    """How weights differ from those of a model. As text, it gives the number and one example of each difference.

    Attributes:
        missing: names of weights that the model has alone.
        unknown: names of weights that the model does not have.
        shapes: name, shape in the file and shape in the model of weights whose shapes differ.
    """

    missing: list[str]
    unknown: list[str]
    shapes: list[tuple[str, Sequence[int], Sequence[int]]]

    def __str__(self) -> str:
        missing = sorted(set(self.missing) - {key for key, _, _ in self.shapes})
        shapes = [f"{key} {list(theirs)} instead of {list(ours)}" for key, theirs, ours in self.shapes]
        groups = {"missing": missing, "unknown": self.unknown, "of another shape": shapes}
        return ", ".join(f"{len(keys)} {what}, such as {keys[0]}" for what, keys in groups.items() if keys)
