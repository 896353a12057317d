"""The annotations of a COCO json: which of them can be used."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from clq.data.formats.findings import Findings, shown
from clq.data.formats.geometry import check_geometry
from clq.data.formats.segmentations import check_segmentation
from clq.data.formats.values import LARGEST_AREA, LARGEST_ID, LARGEST_SIDE, check_id_types, integer, is_id, is_number
from clq.errors import UserError

_FIELDS = "id", "image_id", "category_id", "bbox", "area", "iscrowd"
_BLOCK = 10_000  # annotations that are looked at together


def check_annotations(
    annotations: list,
    images: Sequence[dict],
    listed: Iterable,
    category_ids: Sequence[int | str],
    findings: Findings,
    *,
    masks: str | None,
) -> list[dict]:
    """Checks the annotations of a COCO json.

    An ``iscrowd`` that is null or missing is read as 0, and an ``area`` that is null or missing as the area of the
    box; both are noted. Annotation ids that COCO's evaluation cannot use are replaced by numbers from 1 on.

    Args:
        annotations: the list in the file.
        images: images that can be used, as in :class:`~clq.data.formats.coco.Content`.
        listed: ids of all images in the file.
        category_ids: ids of the categories.
        findings: receives what is found.
        masks: ``INPUT.MASK_FORMAT`` if segmentations are used; those of crowds never are.

    Returns:
        The annotations that can be used, in the order of the file, with the fields that are used.

    Raises:
        UserError: ids are not unique, or the ids that annotations refer to are of another type than those that the
            images or the categories have.
    """
    by_id = {image["id"]: image for image in images}
    unlisted = {integer(i) for i in listed if is_id(i)} - set(by_id)
    check = _Check(by_id, unlisted, set(category_ids), findings, masks)
    kept: list[dict] = []
    for start in range(0, len(annotations), _BLOCK):
        block = annotations[start : start + _BLOCK]
        if check.are_regular(block):
            kept += (a if len(a) == len(_FIELDS) else {key: a[key] for key in _FIELDS} for a in block)
        else:
            checked = (check.annotation(a, number) for number, a in enumerate(block, start + 1))
            kept += (a for a in checked if a is not None)
    kept = check_geometry(kept, by_id, findings)
    _check_ids(kept, findings)
    return kept


class _Check:
    """Checks annotations one by one."""

    def __init__(self, images: dict, left_out: set, categories: set, findings: Findings, masks: str | None):
        self._images = images
        self._left_out = left_out  # ids of images that are listed but cannot be used
        self._categories = categories
        self._id_types = {type(i) for i in [*images, *left_out]}
        self._category_types = {type(i) for i in categories}
        self._findings = findings
        self._masks = masks

    def annotation(self, a: object, number: int) -> dict | None:
        """Returns what is used of an annotation; None if it cannot be used.

        Args:
            a: what the file has.
            number: its position in the file, from 1 on.
        """
        record = a if isinstance(a, dict) else {}
        given = record.get("id")
        item = self._findings.item(record["id"]) if is_id(given) else f"annotation number {number} in its json"
        fault = self._fault_of_ids(a, item) or self._fault_of_values(record)
        if fault is None and self._masks and not record.get("iscrowd"):
            fault = self._fault_of_segmentation(record, item)
        if fault is not None:
            kind, what = fault
            image = self._images.get(integer(record.get("image_id")) if is_id(record.get("image_id")) else None)
            name = given if is_id(given) else number
            self._findings.fault(kind, f"{item} {what}", image=image and image["file_name"], annotation=name)
            return None
        if (image_id := integer(record["image_id"])) not in self._images:
            if image_id not in self._left_out:
                self._findings.note("annotations belong to images that are not listed, and are not used", item)
            return None
        return self._completed(record, item)

    def are_regular(self, block: list) -> bool:
        """Whether annotations can be used as they are.

        Almost all are. This looks at each field of all of them at once, which is ten times as fast as looking at all
        fields of each.
        """
        if self._masks:
            return False
        try:
            ids, image_ids, category_ids, boxes, areas, crowds = ([a[key] for a in block] for key in _FIELDS)
            numbers = list(itertools.chain.from_iterable(boxes))
            values = np.array(numbers, dtype=float).reshape(-1, 4)
            return (
                {type(a) for a in block} == {dict}
                and {type(i) for i in ids} == {int}
                and min(ids) > 0
                and max(ids) < LARGEST_ID
                and {type(i) for i in image_ids} <= self._id_types
                and set(image_ids) <= self._images.keys()
                and {type(i) for i in category_ids} <= self._category_types
                and set(category_ids) <= self._categories
                and {type(c) for c in crowds} == {int}
                and set(crowds) <= {0, 1}
                and {type(b) for b in boxes} == {list}
                and {len(b) for b in boxes} == {4}
                and {type(v) for v in itertools.chain(areas, numbers)} <= {int, float}
                and bool((np.abs(values) <= LARGEST_SIDE).all() and (values[:, 2:] >= 0).all())
                and bool(((sizes := np.array(areas, dtype=float)) >= 0).all() and (sizes <= LARGEST_AREA).all())
                and not any(a.get("ignore") for a in block)
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            return False

    def _fault_of_ids(self, a: object, item: str) -> tuple[str, str] | None:
        """What is wrong with the ids of an annotation, as a kind of faults and a fault; None if they can be used."""
        if not isinstance(a, dict):
            return "annotations are not objects", f"is {shown(a)}; it must be an object"
        for key in ("id", "image_id", "category_id"):
            if key not in a:
                return f"annotations lack {key}", f"lacks {key}; it needs id, image_id, category_id and bbox"
            if not is_id(a[key]):
                return f"annotations have a wrong {key}", f"has {key} {shown(a[key])}; it must be an integer or text"
        for key, types, of in (
            ("image_id", self._id_types, "images"),
            ("category_id", self._category_types, "categories"),
        ):
            if types and type(value := integer(a[key])) not in types:
                kinds = "text", "numbers"
                theirs = kinds if str in types else kinds[::-1]
                raise UserError(
                    f"data set {self._findings.name}: {item} has {key} {shown(value)}, but the ids of the {of} in its "
                    f"json are {theirs[0]}, not {theirs[1]}; write both alike."
                )
        if integer(a["category_id"]) not in self._categories:
            what = f"has category_id {shown(a['category_id'])}, which is not the id of a category"
            return "annotations have an unknown category_id", what
        return None

    @staticmethod
    def _fault_of_values(a: dict) -> tuple[str, str] | None:
        """What is wrong with the other values of an annotation, as :meth:`_fault_of_ids`."""
        if a.get("ignore"):
            what = f'has "ignore" {shown(a["ignore"])}; use "iscrowd": 1 for regions to skip'
            return 'annotations have "ignore"', what
        crowd = a.get("iscrowd")
        if crowd is not None and not (isinstance(crowd, (int, float)) and crowd in (0, 1)):
            return "annotations have a wrong iscrowd", f"has iscrowd {shown(crowd)}; it must be the number 0 or 1"
        area = a.get("area")
        if area is not None and not (is_number(area) and 0 <= area <= LARGEST_AREA):
            return "annotations have a wrong area", f"has area {shown(area)}; it must be a number within 0 and 1e10"
        box = a.get("bbox")
        form = "it must be [x, y, width, height], four numbers"
        if not isinstance(box, list) or len(box) != 4:
            return "annotations have a wrong bbox", f"has bbox {shown(box)}; {form}"
        for i, value in enumerate(box):
            if not is_number(value):
                what = f"has bbox[{i}] {shown(value)}; it must be a finite number"
                return "annotations have wrong values in bbox", what
            if abs(value) > LARGEST_SIDE:
                what = f"has bbox[{i}] {shown(value)}; it must be a coordinate in pixels"
                return "annotations have wrong values in bbox", what
        if min(box[2:]) < 0:
            return "annotations have a negative size", f"has bbox {shown(box)} with a negative size; {form}"
        return None

    def _fault_of_segmentation(self, record: dict, item: str) -> tuple[str, str] | None:
        """What is wrong with the segmentation of an annotation, as :meth:`_fault_of_ids`; notes what is not used."""
        given, image = record.get("segmentation"), self._images.get(integer(record["image_id"]))
        fault = check_segmentation(record, image, self._masks or "")
        if fault is None and isinstance(given, list) and len(record["segmentation"]) < len(given):
            self._findings.note("segmentations have polygons with fewer than three corners, which are not used", item)
        return fault

    def _completed(self, a: dict, item: str) -> dict:
        """Returns the fields that are used, with what may be missing."""
        crowd, area, box = a.get("iscrowd"), a.get("area"), a["bbox"]
        if crowd is None:
            found = "null" if "iscrowd" in a else "missing"
            self._findings.note("annotations have no iscrowd, which is read as 0", f"{item}, where it is {found}")
        if area is None:
            found = "null" if "area" in a else "missing"
            what = "annotations have no area, which is read as width * height of the box"
            self._findings.note(what, f"{item}, where it is {found}")
        return {
            "id": integer(a["id"]),
            "image_id": integer(a["image_id"]),
            "category_id": integer(a["category_id"]),
            "bbox": box,
            "area": min(box[2] * box[3], LARGEST_AREA) if area is None else area,
            "iscrowd": int(crowd or 0),
            **({"segmentation": a["segmentation"]} if self._masks and not crowd else {}),
        }


def _check_ids(annotations: list[dict], findings: Findings) -> None:
    """Checks that ids are unique, and numbers the annotations, in place, where COCO's evaluation cannot use the ids."""
    ids = [a["id"] for a in annotations]
    check_id_types(findings.name, "annotation", ids)
    if len(set(ids)) < len(ids):
        twice, count = Counter(ids).most_common(1)[0]
        raise UserError(
            f"data set {findings.name}: annotation id {twice} occurs {count} times in its json; make ids unique."
        )
    # Its arrays of numbers hold no text, and it takes id 0 for "not found" and -1 for "ignored".
    unusable = [i for i in ids if isinstance(i, str) or i < 1]
    if not unusable:
        return
    what = "annotation ids are not positive integers; for the evaluation, all annotations are numbered from 1 on"
    findings.note(what, shown(unusable[0]), len(unusable))
    for number, a in enumerate(annotations, 1):
        a["id"] = number
