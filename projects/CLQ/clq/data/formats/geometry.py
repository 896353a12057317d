"""Boxes and areas of annotations that are no fault by themselves but odd for their image."""

from collections.abc import Sequence

import numpy as np

from clq.data.formats.findings import Findings

_LARGER = 2  # times the area of a box that an area may be without a word
_OUTSIDE = 1  # pixels by which a box may extend beyond its image without a word


def check_geometry(annotations: list[dict], images: dict, findings: Findings) -> list[dict]:
    """Notes boxes without an area, outside or beyond their image, or smaller than a pixel, and areas that are wrong.

    Args:
        annotations: annotations that can be used otherwise.
        images: records with ``file_name``, ``width`` and ``height``, by id.
        findings: receives what is found.

    Returns:
        The annotations; if faults are left out, without those whose box has no area in the image.
    """
    boxes = np.array([a["bbox"] for a in annotations], dtype=float).reshape(-1, 4)
    of = [images[a["image_id"]] for a in annotations]
    sizes = np.array([(i["width"], i["height"]) for i in of], dtype=float).reshape(-1, 2)
    left_top, right_bottom = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    flat = (boxes[:, 2:] == 0).any(axis=1)
    away = ~flat & ((right_bottom <= 0) | (left_top >= sizes)).any(axis=1)
    beyond = ~flat & ~away & ((left_top < -_OUTSIDE) | (right_bottom > sizes + _OUTSIDE)).any(axis=1)
    tiny = ~flat & ~away & (boxes[:, 2:] < 1).all(axis=1)
    areas, inside = np.array([a["area"] for a in annotations], dtype=float), boxes[:, 2] * boxes[:, 3]
    wrong = ~flat & ~away & ~tiny & ((areas == 0) | (areas > _LARGER * inside + 1))
    unused = "training ignores them, but evaluation counts them as missed"
    useless = flat | away
    for odd, what in (
        (flat, "boxes have no area"),
        (away, "boxes lie outside of their image (bbox is [x, y, width, height])"),
    ):
        if findings.skip:
            for i in np.flatnonzero(odd):
                a = annotations[i]
                findings.fault(what, f"{findings.item(a['id'])} has bbox {a['bbox']}", of[i]["file_name"], a["id"])
        elif odd.any():
            findings.note(f"{what}; {unused}", _example(annotations, odd, findings), int(odd.sum()))
    for odd, what in (
        (beyond, f"boxes extend beyond their image by more than {_OUTSIDE} px (bbox is [x, y, width, height])"),
        (tiny, "boxes are smaller than a pixel, as if they were fractions of the image; bbox is in pixels"),
    ):
        if odd.any():
            findings.note(what, _example(annotations, odd, findings), int(odd.sum()))
    if wrong.any():
        what = "areas are 0 or much larger than their boxes, which makes AP of small, medium and large objects wrong"
        area = annotations[int(wrong.argmax())]["area"]
        findings.note(what, f"{_example(annotations, wrong, findings)} and area {area}", int(wrong.sum()))
    return [a for a, drop in zip(annotations, useless, strict=True) if not drop] if findings.skip else annotations


def _example(annotations: Sequence[dict], odd: np.ndarray, findings: Findings) -> str:
    first = annotations[int(odd.argmax())]
    return f"{findings.item(first['id'])} with bbox {first['bbox']}"
