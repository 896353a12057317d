"""Finds annotations that are possible but rarely meant: tiny, huge, thin, beyond their image, or drawn twice."""

import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from torchvision.ops import box_iou

from clq.data.datasets import complete_metadata, is_declared, load_content
from clq.data.formats.coco import to_records
from clq.data.left_out import left_out_images
from clq.errors import UserError
from clq.inspection.training_images import object_boxes, read_records

OUTSIDE = 1.0  # pixels by which a box may extend beyond its image: tools round differently
TINY_SIDE = 4.0  # pixels of the shorter side
TINY_SHARE = 1e-4  # of the area of the image
HUGE_SHARE = 0.95  # of the area of the image
THIN = 10.0  # ratio of the longer to the shorter side
SAME_IOU = 0.9  # IoU above which two boxes are the same object
# The kinds, worst first. Boxes of the first one cannot be learned.
KINDS = "outside", "duplicate", "two classes", "tiny", "beyond", "thin", "huge"


class Suspicion(NamedTuple):
    """An annotation and what is odd about it.

    Attributes:
        record: index of its record.
        object: index of its box among those of :func:`~clq.inspection.training_images.object_boxes`.
        kind: one of ``KINDS``.
        degree: how odd it is; comparable within a kind, larger is odder.
        reason: what is odd about it, in words.
    """

    record: int
    object: int
    kind: str
    degree: float
    reason: str


def read_annotated(data_set: str) -> list[dict]:
    """The records of a data set, whose annotations have their ``id`` if the data set is declared in the config.

    Raises:
        UserError: the data set is unknown, or cannot be read.
    """
    if not is_declared(data_set):
        return read_records([data_set])
    content = load_content(data_set)
    complete_metadata(data_set, content)
    records = to_records(content, MetadataCatalog.get(data_set).image_root)
    unlabelled = {record["image_id"]: iter(record["annotations"]) for record in records}
    for annotation in content.annotations or ():  # the records have those of an image in the same order
        next(unlabelled[annotation["image_id"]])["id"] = annotation["id"]
    gone = left_out_images(data_set)
    return [r for r in records if (r["file_name"], r["image_id"]) not in gone]


def find_suspicious(records: Sequence[dict], class_names: Sequence[str]) -> list[Suspicion]:
    """The suspicious annotations of records in Detectron2's format; by kind, and the oddest first. Crowds do not count.

    An annotation can be suspicious for several reasons. Of two boxes of the same object, the later one is reported.
    """
    found = [s for i, record in enumerate(records) for s in _of_record(i, record, class_names)]
    return sorted(found, key=lambda s: (KINDS.index(s.kind), -s.degree, s.record, s.object))


def _of_record(index: int, record: dict, class_names: Sequence[str]) -> Iterator[Suspicion]:
    boxes, (width, height) = object_boxes(record), (record["width"], record["height"])
    if not len(boxes):
        return
    inside = boxes.clip(0, [width, height, width, height])
    sides, whole = boxes[:, 2:] - boxes[:, :2], (inside[:, 2:] - inside[:, :2]).clip(0).prod(axis=1)
    short, long = sides.min(axis=1), sides.max(axis=1)
    excess = np.maximum(-boxes[:, :2], boxes[:, 2:] - [width, height]).max(axis=1)
    for i in range(len(boxes)):
        size = f"{sides[i, 0]:.4g} x {sides[i, 1]:.4g} px"
        if whole[i] <= 0:
            what = "has no area" if short[i] <= 0 else "is outside of its image"
            yield Suspicion(index, i, "outside", excess[i], f"the box, {size}, {what}")
            continue
        if excess[i] > OUTSIDE:
            yield Suspicion(index, i, "beyond", excess[i], f"it extends {excess[i]:.4g} px beyond its image")
        if short[i] < TINY_SIDE or whole[i] < TINY_SHARE * width * height:
            yield Suspicion(index, i, "tiny", -whole[i], f"it is tiny, {size}")
        if whole[i] > HUGE_SHARE * width * height:
            share = whole[i] / (width * height)
            yield Suspicion(index, i, "huge", share, f"it covers {share:.0%} of its image")
        if long[i] > THIN * short[i]:
            yield Suspicion(index, i, "thin", long[i] / short[i], f"it is thin, {size}")
    yield from _duplicates(index, record, boxes, class_names)


def _duplicates(index: int, record: dict, boxes: np.ndarray, class_names: Sequence[str]) -> Iterator[Suspicion]:
    if len(boxes) < 2:
        return
    annotations = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    ious = np.nan_to_num(box_iou(*itertools.repeat(torch.from_numpy(boxes), 2)).numpy())
    for first, second in zip(*np.nonzero(np.triu(ious > SAME_IOU, 1)), strict=True):
        one, iou = annotations[first], f"IoU {ious[first, second]:.2f}"
        other = f"annotation {one['id']}" if "id" in one else f"box {first + 1} of the image"
        if one["category_id"] == annotations[second]["category_id"]:
            reason, kind = f"it is the same box as {other}, {iou}", "duplicate"
        else:
            reason, kind = f"it is the same box as {other}, a {class_names[one['category_id']]}, {iou}", "two classes"
        yield Suspicion(index, int(second), kind, float(ious[first, second]), reason)


def worst_first(suspicions: Iterable[Suspicion]) -> list[int]:
    """The indices of the records with something suspicious: the worst of each kind in turn, each record once.

    Args:
        suspicions: of :func:`find_suspicious`, in its order.
    """
    by_kind = itertools.groupby(suspicions, key=lambda s: s.kind)
    columns = [list(dict.fromkeys(s.record for s in group)) for _, group in by_kind]
    turns = itertools.zip_longest(*columns)
    return list(dict.fromkeys(record for turn in turns for record in turn if record is not None))


def write_suspicious(
    path: str, suspicions: Iterable[Suspicion], records: Sequence[dict], class_names: Sequence[str]
) -> None:
    """Writes suspicious annotations as CSV: image, annotation id, class, kind, reason, and the box as in COCO json.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as f:
            writer = csv.writer(f)
            writer.writerow(["image", "annotation_id", "class", "kind", "reason", "x", "y", "width", "height"])
            for s in suspicions:
                record = records[s.record]
                annotation = [a for a in record["annotations"] if not a.get("iscrowd", 0)][s.object]
                x0, y0, x1, y1 = object_boxes(record)[s.object]
                name, box = class_names[annotation["category_id"]], (x0, y0, x1 - x0, y1 - y0)
                numbers = [f"{value:.10g}" for value in box]
                writer.writerow([record["file_name"], annotation.get("id", ""), name, s.kind, s.reason, *numbers])
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror}); choose another folder.") from e
