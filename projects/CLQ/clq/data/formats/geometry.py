"""What is odd about the boxes of a data set, compared with the sizes of its images."""

from collections.abc import Sequence

import numpy as np

from clq.data.formats.findings import Findings

_OUTSIDE = 1  # pixels by which a box may extend beyond its image without a word


def check_geometry(annotations: list[dict], images: dict, findings: Findings) -> list[dict]:
    """Notes boxes without an area, outside or beyond their image, or smaller than a pixel.

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
    tiny = ~flat & (boxes[:, 2:] < 1).all(axis=1)
    unused = "training ignores them, but evaluation counts them as missed"
    useless = flat | away
    for odd, what in (
        (flat, "boxes have no area"),
        (away, "boxes lie outside of their image (bbox is [x, y, width, height])"),
    ):
        if findings.skip:
            for i in np.flatnonzero(odd):
                a = annotations[i]
                findings.fault(what, f"annotation {a['id']} has bbox {a['bbox']}", of[i]["file_name"], a["id"])
        elif odd.any():
            findings.note(f"{what}; {unused}", _example(annotations, odd), int(odd.sum()))
    for odd, what in (
        (beyond, f"boxes extend beyond their image by more than {_OUTSIDE} px (bbox is [x, y, width, height])"),
        (tiny, "boxes are smaller than a pixel, as if they were fractions of the image; bbox is in pixels"),
    ):
        if odd.any():
            findings.note(what, _example(annotations, odd), int(odd.sum()))
    return [a for a, drop in zip(annotations, useless, strict=True) if not drop] if findings.skip else annotations


def _example(annotations: Sequence[dict], odd: np.ndarray) -> str:
    first = annotations[int(odd.argmax())]
    return f"annotation {first['id']} with bbox {first['bbox']}"
