"""Evaluate a detector on the test sets of its config: ``clq train --eval-only``."""

from collections.abc import Sequence

from clq.commands import train


def main(argv: Sequence[str] | None = None) -> int | None:
    """Evaluates, and returns the exit status."""
    return train.main(["--eval-only", *(argv or [])])
