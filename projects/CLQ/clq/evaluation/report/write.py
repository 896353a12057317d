"""Writes a report into a folder: ``report.html``, its pictures, ``metrics.json`` and the thresholds."""

import json
import math
import os
from collections.abc import Sequence
from typing import Any

from clq.errors import UserError
from clq.evaluation.report import sections, what_if
from clq.evaluation.report.analysis import Analysis
from clq.evaluation.report.page import Section, page, paragraph
from clq.utils.files import write_atomically

HTML, METRICS = "report.html", "metrics.json"
MOST_RUNS = 6  # that pictures can tell apart


def write_report(analyses: Sequence[Analysis], folder: str, images: str | None = None) -> str:
    """Writes the report on one or several runs on the same images.

    Args:
        analyses: of the runs, whose names differ.
        folder: folder to write into; it is made.
        images: folder of the images, or None if the best and the worst are not to be drawn.

    Returns:
        The path of the page.

    Raises:
        UserError: the folder cannot be written to.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        raise UserError(f"{folder}: cannot be made ({e.strerror or e}); choose another folder.") from e
    pictures: sections.Pictures = {}
    parts: list[Section] = [
        make(analyses, pictures)
        for make in (
            sections.overview,
            sections.trust,
            sections.thresholds,
            sections.errors,
            sections.classes,
            what_if.headroom,
        )
    ]
    parts.append(what_if.images(analyses, images))
    for name, data in pictures.items():
        if data:
            _write(os.path.join(folder, name), data)
    for index, analysis in enumerate(analyses):
        write_thresholds(analysis, folder, "" if len(analyses) == 1 else f"_{index + 1}")
    numbers = {a.run.name: a.numbers() for a in analyses}
    _write(os.path.join(folder, METRICS), json.dumps(plain(numbers), indent=1, allow_nan=False).encode())
    path = os.path.join(folder, HTML)
    _write(path, page(_title(analyses), _introduction(analyses), parts).encode())
    return path


def _title(analyses: Sequence[Analysis]) -> str:
    return " · ".join(a.run.name for a in analyses)


def _introduction(analyses: Sequence[Analysis]) -> str:
    truth = analyses[0].run.truth
    counts = f"{len(truth.image_ids):,} images, {truth.objects.sum():,} objects, {len(truth.names):,} classes"
    runs = "" if len(analyses) == 1 else f" {len(analyses)} runs are compared."
    return paragraph(f"Evaluated on {counts}.{runs} metrics.json beside this page has all numbers.")


def write_thresholds(analysis: Analysis, folder: str, suffix: str = "") -> None:
    """Writes the thresholds of each class that has objects, for F1 and for the wanted precision.

    A class of which no detection is right, or none that reaches the precision, has the threshold 1.
    """
    for name, place in (("thresholds", 0), ("thresholds_precision", 1)):
        points = {c: pair[place] for c, pair in analysis.points.items()}
        values = {c: 1.0 if point is None else point.threshold for c, point in points.items()}
        _write(os.path.join(folder, f"{name}{suffix}.json"), json.dumps(values, indent=1, ensure_ascii=False).encode())


def plain(value: Any) -> Any:
    """A value with null in place of nan and infinity, which json does not have, and Python's own numbers."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    return float(value) if math.isfinite(value) else None


def _write(path: str, data: bytes) -> None:
    with write_atomically(path) as f:
        f.write(data)
