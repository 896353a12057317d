"""What a data set contains, in short. It is remembered, because checking a large one takes long."""

import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clq.data import formats
from clq.data.formats.coco import Content
from clq.data.formats.findings import Findings, Kind
from clq.utils.cache import recall, remember

_KIND = "annotations"


@dataclass(frozen=True)
class Summary:
    """The usable content of a data set; the lists have an entry for each of the I images.

    Attributes:
        classes: names of the classes, in the order of the model's outputs.
        has_annotations: whether it has annotations, if only an empty list of them.
        ids, file_names, widths, heights: of the images.
        found: numbers of boxes that are to be found: those that are not crowds.
        trainable: numbers of boxes to train on: those of ``found`` with an area in their image.
    """

    classes: list[str]
    has_annotations: bool
    ids: list
    file_names: list[str]
    widths: list[int]
    heights: list[int]
    found: list[int]
    trainable: list[int]


def summarize(content: Content) -> Summary:
    """Summarizes the usable content of a data set."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in content.images}
    boxes = [a for a in content.annotations or () if not a["iscrowd"]]
    found = Counter(a["image_id"] for a in boxes)
    trainable = Counter(a["image_id"] for a in boxes if _is_trainable(a["bbox"], sizes[a["image_id"]]))
    return Summary(
        classes=content.class_names,
        has_annotations=content.annotations is not None,
        ids=list(sizes),
        file_names=[image["file_name"] for image in content.images],
        widths=[width for width, _ in sizes.values()],
        heights=[height for _, height in sizes.values()],
        found=[found[i] for i in sizes],
        trainable=[trainable[i] for i in sizes],
    )


def _is_trainable(box: Sequence[float], size: tuple[int, int]) -> bool:
    """Whether a part of a box, (x, y, width, height), lies in its image of a size (width, height)."""
    x, y, w, h = box
    return w > 0 and h > 0 and -w < x < size[0] and -h < y < size[1]


def recall_summary(subject: str, stamp: list, findings: Findings) -> Summary | None:
    """The summary that :func:`remember_summary` kept, if the files have not changed since, and its notes.

    Args:
        subject: absolute path of the json, or whatever else identifies the data set.
        stamp: values that change with its files, and with what else the summary depends on.
        findings: receives the notes.
    """
    known = recall(_KIND, subject, _version())
    try:
        if known is None or known["stamp"] != stamp:
            return None
        notes = {kind: Kind(first, count) for kind, first, count in known["notes"]}
        summary = Summary(**known["summary"])
        columns = summary.ids, summary.file_names, summary.widths, summary.heights, summary.found, summary.trainable
        if len({len(column) for column in columns}) != 1:
            return None
    except (LookupError, TypeError, ValueError):  # damaged
        return None
    findings.notes.update(notes)
    return summary


def remember_summary(subject: str, stamp: list, findings: Findings, summary: Summary) -> None:
    """Keeps a summary with the notes in ``findings``, unless there are faults, which each start reports anew."""
    if findings.faults:
        return
    notes = [[kind, found.first, found.count] for kind, found in findings.notes.items()]
    known: dict[str, Any] = {"stamp": stamp, "notes": notes, "summary": asdict(summary)}
    remember(_KIND, subject, _version(), known)


@functools.cache
def _version() -> str:
    """Digest of the code that checks annotations: what it has found holds for this code only."""
    sources = [Path(__file__), *sorted(Path(next(iter(formats.__path__))).glob("*.py"))]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
