"""From finished runs to comparisons as text and picture: what tools/ablate.py and tools/compare.py share."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from clq.errors import UserError
from clq.evaluation.matches import Matches, match_results
from clq.experiments.bootstrap import Difference


def cached_matches(folder: Path, annotations_file: str, results_file: Path, max_dets: int) -> Matches:
    """The matches of a run, from ``matches.npz`` in its folder, which is written where it is missing or older.

    Args:
        folder: of the run.
        annotations_file: COCO json of the test set.
        results_file: COCO results of the run on it.
        max_dets: detections of an image and class that count.
    """
    cache = folder / "matches.npz"
    if not cache.is_file() or cache.stat().st_mtime_ns < results_file.stat().st_mtime_ns:
        match_results(annotations_file, str(results_file), max_dets).save(str(cache))
    return Matches.load(str(cache))


def check_reference(reference: str, variants: Iterable[str]) -> None:
    """Checks the name of the variant that others are compared with.

    Raises:
        UserError: there is no such variant.
    """
    variants = list(variants)
    if reference not in variants:
        raise UserError(f"--reference {reference}: not one of {', '.join(variants)}.")


def interval_cell(difference: Difference | None) -> str:
    """``+1.23 [+0.45, +2.01]``, or a dash for the reference itself."""
    if difference is None:
        return "–"
    return f"{difference.value:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"


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
        if difference.parts is None:
            lines.append(f"{start}, of the images alone; a second seed shows what the trainings add.")
            continue
        seeds = difference.parts.seeds_needed(half_width, images)
        more = difference.parts.images_needed(half_width, difference.seeds)
        ways = [f"{seeds} seeds on these images"] if seeds else []
        ways += [f"{more} such images with these seeds"] if more and more > images else []
        lines.append(f"{start}; ±{half_width:g} takes {' or '.join(ways) or 'more of both'}.")
    return lines
