"""The ground truth of a data set as arrays, and the IoUs of detections with it."""

import os
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO

from clq.data.formats.coco import check_content, read_coco_json, to_coco
from clq.data.formats.findings import Findings
from clq.errors import UserError


@dataclass(frozen=True)
class Truth:
    """The ground truth of I images and K classes: M objects, in the order of their json.

    Attributes:
        coco: pycocotools' index of the images that count.
        image_ids: ids of the images, rising.
        file_names: their files, relative to a folder of images.
        category_ids: ids of the classes, rising.
        names: their names.
        image: (M,) index of each object's image.
        label: (M,) index of its class.
        boxes: (M, 4) XYWH in pixels.
        crowd: (M,) whether it is a crowd: detections on it count neither as right nor as wrong.
    """

    coco: COCO
    image_ids: list
    file_names: list[str]
    category_ids: list
    names: list[str]
    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    crowd: np.ndarray

    @property
    def objects(self) -> np.ndarray:
        """(K,) objects of each class, without crowds."""
        return np.bincount(self.label[~self.crowd], minlength=len(self.names))


def truth_of(coco: COCO, image_ids: Collection | None = None) -> Truth:
    """The ground truth of an index whose annotations are complete, on all images or on those with these ids."""
    if image_ids is not None and set(image_ids) != set(coco.imgs):
        coco = _only(coco, set(image_ids))
    images, classes = sorted(coco.getImgIds()), sorted(coco.getCatIds())
    places, labels = ({value: i for i, value in enumerate(ids)} for ids in (images, classes))
    annotations = coco.dataset.get("annotations", [])
    return Truth(
        coco=coco,
        image_ids=images,
        file_names=[str(coco.imgs[i].get("file_name", i)) for i in images],
        category_ids=classes,
        names=[str(coco.cats[c]["name"]) for c in classes],
        image=np.array([places[a["image_id"]] for a in annotations], int),
        label=np.array([labels[a["category_id"]] for a in annotations], int),
        boxes=np.array([a["bbox"] for a in annotations], float).reshape(-1, 4),
        crowd=np.array([bool(a.get("iscrowd")) for a in annotations], bool),
    )


def _only(coco: COCO, image_ids: set) -> COCO:
    part, data = COCO(), dict(coco.dataset)
    data["images"] = [image for image in data["images"] if image["id"] in image_ids]
    data["annotations"] = [a for a in data.get("annotations", []) if a["image_id"] in image_ids]
    part.dataset = data
    part.createIndex()
    return part


def read_annotations(path: str) -> Truth:
    """Reads a COCO json. What is faulty in it is left out, with a warning.

    Raises:
        UserError: the file cannot be read, is not COCO json, or has no annotations.
    """
    findings = Findings(os.path.basename(path), skip=True)
    content = check_content(read_coco_json(path, findings.name), findings, masks=None)
    if content.annotations is None:
        raise UserError(f"{path}: has no annotations, with which detections could be compared; give another json.")
    findings.log()
    return truth_of(to_coco(content))


@dataclass(frozen=True)
class Overlaps:
    """P pairs of a detection and an object of the same image whose IoU is above 0, whatever their classes.

    Pairs stand by detection; of one detection, objects come before crowds, and higher IoUs before lower ones.

    Attributes:
        detection: (P,) index of the detection.
        truth: (P,) index of the object.
        iou: (P,) their IoU; for a crowd the part of the detection that lies in it, as in COCO's evaluation.
        crowd: (P,) whether the object is a crowd.
    """

    detection: np.ndarray
    truth: np.ndarray
    iou: np.ndarray
    crowd: np.ndarray

    def best(self, chosen: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first, and therefore best, chosen pair of each detection.

        Args:
            chosen: (P,) bool.
            count: number D of detections.

        Returns:
            IoUs (D,), 0 where there is none, and objects (D,), -1 where there is none.
        """
        ious, truths = np.zeros(count), np.full(count, -1)
        detections, first = np.unique(self.detection[chosen], return_index=True)
        ious[detections], truths[detections] = self.iou[chosen][first], self.truth[chosen][first]
        return ious, truths


def overlaps_of(truth: Truth, image: np.ndarray, boxes: np.ndarray) -> Overlaps:
    """Computes the IoUs, by pycocotools, of detections in images (D,) with boxes (D, 4) XYWH."""
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    found, there = _by_image(image, len(truth.image_ids)), _by_image(truth.image, len(truth.image_ids))
    for mine, theirs in zip(found, there, strict=True):
        if len(mine) and len(theirs):
            iou = mask.iou(boxes[mine], truth.boxes[theirs], truth.crowd[theirs].astype(np.uint8).tolist())
            row, column = np.nonzero(iou > 0)
            parts.append((mine[row], theirs[column], iou[row, column]))
    nothing = np.zeros(0, int), np.zeros(0, int), np.zeros(0)
    detection, other, iou = (np.concatenate(x) for x in zip(nothing, *parts, strict=True))
    crowd = truth.crowd[other]
    order = np.lexsort((-other, -iou, crowd, detection))  # of equal IoUs the later object, as in pycocotools
    return Overlaps(detection[order], other[order], iou[order], crowd[order])


def _by_image(image: np.ndarray, count: int) -> list[np.ndarray]:
    order = np.argsort(image, kind="stable")
    return np.split(order, np.searchsorted(image[order], np.arange(1, count)))
