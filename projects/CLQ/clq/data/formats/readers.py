"""The readers of all formats, which return what a json in COCO format holds."""

import os
from collections.abc import Sequence

from clq.data.formats.classes import choose_classes
from clq.data.formats.coco import read_coco_json
from clq.data.formats.findings import Findings
from clq.data.formats.source import Source, guess_format
from clq.data.formats.values import is_id
from clq.data.formats.voc import read_voc
from clq.data.formats.voc_files import find_voc
from clq.data.formats.yolo import read_yolo
from clq.data.formats.yolo_files import find_yolo
from clq.errors import UserError


def read_source(source: Source, findings: Findings, classes: Sequence[str] = ()) -> dict:
    """Reads a data set.

    Args:
        source: its source.
        findings: receives what is found.
        classes: names of the classes that are used, in the order of the model's outputs; all if empty.

    Returns:
        ``images``, ``annotations`` and ``categories`` as in a COCO json, of which only the categories are checked.

    Raises:
        UserError: the files cannot be used.
    """
    source.check_path(findings.name)
    if source.format == "voc":
        return choose_classes(read_voc(source, findings, all_classes=not classes), classes, findings, listed=False)
    if source.format == "yolo":
        return choose_classes(read_yolo(source, findings), classes, findings)
    try:
        data = read_coco_json(source.path, findings.name)
    except UserError as e:
        if guess_format(source.path) not in (None, "coco"):
            raise source.mistaken(findings.name) from e
        raise
    return choose_classes(data if source.part is None else _part_of(data, source), classes, findings)


def fingerprint(source: Source, name: str) -> list[int | str]:
    """Values that change whenever a file changes that a data set depends on.

    Args:
        source: its source.
        name: its name, for messages.

    Raises:
        UserError: the files do not exist or are not a data set of this format.
    """
    source.check_path(name)
    if source.format == "voc":
        return [find_voc(source, name).digest]
    if source.format == "yolo":
        return [find_yolo(source, name).digest]
    status = os.stat(source.path)
    return [status.st_mtime_ns, status.st_size]


def _part_of(data: dict, source: Source) -> dict:
    """The images of a part, with their annotations. What cannot be told is left to the checks."""
    images, annotations = data.get("images"), data.get("annotations")
    if source.part is None or not isinstance(images, list):
        return data
    holds = source.part.holds
    kept = [i for i in images if not isinstance(i, dict) or holds(str(i.get("file_name", "")))]
    gone = [i.get("id") for i in images if isinstance(i, dict) and not holds(str(i.get("file_name", "")))]
    ids = {i for i in gone if is_id(i)}
    if isinstance(annotations, list):
        annotations = [
            a for a in annotations if not (isinstance(a, dict) and is_id(a.get("image_id")) and a["image_id"] in ids)
        ]
        data = {**data, "annotations": annotations}
    return {**data, "images": kept}
