"""From finished runs to comparisons as text and picture: what tools/ablate.py and tools/compare.py share."""

import argparse
import contextlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from clq.errors import UserError
from clq.evaluation.matches import Matches, match_results
from clq.experiments.bootstrap import Difference


def cached_matches(folder: Path, annotations_file: str, results_file: Path, max_dets: int) -> Matches:
    """The matches of a run, from ``matches.npz`` in its folder, which is written where it is missing, older or damaged.

    Args:
        folder: of the run.
        annotations_file: COCO json of the test set.
        results_file: COCO results of the run on it.
        max_dets: detections of an image and class that count.
    """
    cache = folder / "matches.npz"
    if cache.is_file() and cache.stat().st_mtime_ns >= results_file.stat().st_mtime_ns:
        with contextlib.suppress(UserError):  # a file that cannot be read is made anew, as if it were missing
            return Matches.load(str(cache))
    matches = match_results(annotations_file, str(results_file), max_dets)
    matches.save(str(cache))
    return matches


def check_reference(reference: str, variants: Iterable[str]) -> None:
    """Checks the name of the variant that others are compared with.

    Raises:
        UserError: there is no such variant.
    """
    variants = list(variants)
    if reference not in variants:
        raise UserError(f"--reference {reference}: not one of {', '.join(variants)}.")


def check_same_test_set(first_of: Mapping[str, str]) -> None:
    """Checks that all variants are tested on the same images.

    Args:
        first_of: name of a variant -> the first of its test sets.

    Raises:
        UserError: the test sets differ.
    """
    if len(set(first_of.values())) > 1:
        sets = ", ".join(f"{dataset} ({name})" for name, dataset in first_of.items())
        raise UserError(f"DATASETS.TEST: variants of a study need the same first test set, not {sets}.")


def wanted_half_width(text: str) -> float:
    """Parses ``--half-width``; for the ``type`` argument of argparse.

    Raises:
        ArgumentTypeError: it is not above 0, or not below 100.
        ValueError: the text is not a number.
    """
    if not 0 < (value := float(text)) < 100:
        raise argparse.ArgumentTypeError(f"{text}: must be a number of AP above 0 and below 100")
    return value


def interval_cell(difference: Difference | None) -> str:
    """``+1.23 [+0.45, +2.01]``, or a dash for the reference itself."""
    if difference is None or math.isnan(difference.value):
        return "–"
    images_only = "" if difference.parts else " (images only)"
    return f"{difference.value:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]{images_only}"


def what_is_needed(differences: Mapping[str, Difference], reference: str, half_width: float, images: int) -> list[str]:
    """One sentence for each difference: how wide its interval is, and what a wanted half-width would take.

    Args:
        differences: name of a variant -> its AP less that of the reference.
        reference: name of the variant that all are compared with.
        half_width: the wanted half of an interval, in AP.
        images: of the test set.
    """
    lines = []
    for name, difference in differences.items():
        start = f"{name} - {reference}: ±{difference.half_width:.2f} AP with {difference.seeds} seed(s)"
        if math.isnan(difference.value):
            lines.append(f"{name} - {reference}: there is no AP, because the test set has no objects.")
        elif difference.parts is None:
            lines.append(f"{start}, of the images alone; a second seed shows what the trainings add.")
        elif difference.half_width <= half_width:
            lines.append(f"{start}; ±{half_width:g} is reached.")
        elif difference.seeds < 3:
            lines.append(f"{start}; two seeds are too few to say what ±{half_width:g} takes.")
        else:
            seeds = difference.parts.seeds_needed(half_width, images)
            more = difference.parts.images_needed(half_width, difference.seeds, images)
            ways = [f"about {seeds} seeds on these images"] if seeds else []
            ways += [f"about {more} such images with these seeds"] if more else []
            lines.append(f"{start}; ±{half_width:g} takes {' or '.join(ways) or 'more of both'}.")
    return lines
