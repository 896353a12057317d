"""The segmentations of a COCO json, which only detectors with masks use."""

import pycocotools.mask as mask_util

from clq.data.formats.findings import shown
from clq.data.formats.values import is_number


def check_segmentation(annotation: dict, image: dict | None, mask_format: str) -> tuple[str, str] | None:
    """Checks the segmentation of an annotation.

    Args:
        annotation: annotation of a COCO json. Its segmentation is replaced, in place, by what Detectron2's mapper
            takes: polygons without those that have no area, or a compressed RLE.
        image: its image, with ``width`` and ``height``, or None if it cannot be used.
        mask_format: ``INPUT.MASK_FORMAT``, "polygon" or "bitmask"; only the latter can come from an RLE.

    Returns:
        A kind of faults and a fault of this kind, in words that follow the name of the annotation; None if the
        segmentation can be used.
    """
    kind, value = "annotations have a wrong segmentation", annotation.get("segmentation")
    needs = "MODEL.MASK_ON needs a list of polygons [x1, y1, x2, y2, ...] or an RLE with size and counts"
    what = f"has segmentation {shown(value)}; {needs}"
    if isinstance(value, list):
        polygons = [p for p in value if isinstance(p, list) and all(is_number(v) for v in p)]
        if len(polygons) < len(value):
            return kind, what
        if odd := next((p for p in polygons if len(p) % 2), None):
            return kind, f"has a polygon of {len(odd)} values in its segmentation; each corner needs x and y"
        polygons = [p for p in polygons if len(p) >= 6]
        if not polygons:
            return kind, f"has segmentation {shown(value)} without a polygon of three corners; {needs}"
        if image is not None and (far := _far_away(polygons, image)) is not None:
            return kind, f"has {far} in its segmentation, far outside of its image; coordinates are in pixels"
        annotation["segmentation"] = polygons
        return None
    if not isinstance(value, dict) or image is None:
        return (kind, what) if image is not None else None
    if mask_format == "polygon":
        return kind, "has an RLE as its segmentation, but INPUT.MASK_FORMAT is polygon; set that to bitmask"
    size, counts = value.get("size"), value.get("counts")
    if size != [image["height"], image["width"]]:
        expected = [image["height"], image["width"]]
        return kind, f"has a segmentation of size {shown(size)}; its image has {expected} (height, width)"
    value["size"] = [image["height"], image["width"]]  # integers, which pycocotools needs
    if isinstance(counts, list):
        whole = all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in counts)
        if not whole or sum(counts) != size[0] * size[1]:
            return kind, "has an RLE whose counts are not integers that add up to the size of the image"
        annotation["segmentation"] = mask_util.frPyObjects(value, *size)
        return None
    if not isinstance(counts, str) or not _covers(counts, size[0] * size[1]):
        return kind, "has an RLE whose counts do not add up to the size of the image"
    return None


def _far_away(polygons: list[list], image: dict) -> float | None:
    """A coordinate that is further from the image than the image is long; None if there is none.

    pycocotools computes with 32 bits and walks along each side of a polygon, so it crashes or fills memory.
    """
    reach = max(image["width"], image["height"])
    for polygon in polygons:
        for values, side in ((polygon[::2], image["width"]), (polygon[1::2], image["height"])):
            for v in (min(values), max(values)):
                if not -reach <= v <= side + reach:
                    return v
    return None


def _covers(counts: str, pixels: int) -> bool:
    """Whether compressed counts describe as many pixels, which pycocotools does not check before it writes them."""
    runs: list[int] = []
    position, text = 0, counts.encode("utf-8", "replace")
    while position < len(text):
        value = shift = 0
        more = True
        while more:
            if position == len(text) or shift > 60:
                return False
            group = text[position] - 48
            if not 0 <= group < 64:
                return False
            value |= (group & 31) << shift
            more = bool(group & 32)
            position, shift = position + 1, shift + 5
            if not more and group & 16:
                value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            return False
    return sum(runs) == pixels
