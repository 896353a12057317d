"""The detections of a run as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from clq.data.formats.values import is_number
from clq.errors import UserError
from clq.evaluation.report.truth import Overlaps, Truth, overlaps_of
from clq.evaluation.results_file import read_results

QUALITIES = {"predicted_iou": "predicted IoU", "centerness": "centerness", "quality": "quality"}  # as in the results
_MOST_LEVELS = 99
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}  # COCO's, areas in pixels


@dataclass(frozen=True)
class Run:
    """The D detections of one evaluation.

    Attributes:
        name: name in tables and pictures.
        truth: what they are compared with.
        image: (D,) index of the image.
        label: (D,) index of the class.
        boxes: (D, 4) XYWH in pixels.
        scores: (D,) final scores.
        cls_scores: (D,) class scores; None where the results have none.
        quality: (D,) output of the quality branch; None where the results have none.
        quality_name: name of that output in the results.
        levels: (D,) index of the FPN level, 0 is the finest; None where the results have none.
        overlaps: with the objects.
    """

    name: str
    truth: Truth
    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    cls_scores: np.ndarray | None
    quality: np.ndarray | None
    quality_name: str | None
    levels: np.ndarray | None
    overlaps: Overlaps

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def same_class(self) -> np.ndarray:
        """(P,) whether detection and object of a pair have the same class."""
        return self.label[self.overlaps.detection] == self.truth.label[self.overlaps.truth]

    @property
    def true_iou(self) -> np.ndarray:
        """(D,) the IoU with the object of the same class that a detection overlaps most; 0 if there is none."""
        return self.overlaps.best(self.same_class & ~self.overlaps.crowd, len(self))[0]

    def size_names(self) -> np.ndarray:
        """(D,) the name of COCO's size of each detected box."""
        return np.array(list(SIZES))[np.digitize(self.boxes[:, 2] * self.boxes[:, 3], [32**2, 96**2])]

    def changed(self, keep: np.ndarray, label: np.ndarray | None = None, boxes: np.ndarray | None = None) -> "Run":
        """The detections ``keep`` (indices or bool), with other labels or boxes if they are given, (D,) and (D, 4)."""
        image, box = self.image[keep], (self.boxes if boxes is None else boxes)[keep]
        cls, quality, levels = (None if x is None else x[keep] for x in (self.cls_scores, self.quality, self.levels))
        return replace(
            self,
            image=image,
            label=(self.label if label is None else label)[keep],
            boxes=box,
            scores=self.scores[keep],
            cls_scores=cls,
            quality=quality,
            levels=levels,
            overlaps=overlaps_of(self.truth, image, box),
        )


def make_run(name: str, truth: Truth, results: Sequence[dict], *, max_dets: int = 100, where: str = "results") -> Run:
    """The run of COCO results.

    Args:
        name: name in tables and pictures.
        truth: ground truth of the same images.
        results: dicts with ``image_id``, ``category_id``, ``bbox`` and ``score``, and perhaps ``cls_score``, one of
            :data:`QUALITIES`, and ``level``.
        max_dets: detections of an image and class that count, those with the highest scores.
        where: name of the file, for messages.

    Raises:
        UserError: a score or a part of it is not within 0 and 1, or some detections have a part that others lack.
    """
    images, classes = ({v: i for i, v in enumerate(ids)} for ids in (truth.image_ids, truth.category_ids))
    image = np.array([images[r["image_id"]] for r in results], int)
    label = np.array([classes[r["category_id"]] for r in results], int)
    boxes = np.array([r["bbox"] for r in results], float).reshape(-1, 4)
    part = _part(results, "score", where)
    scores = np.zeros(0) if part is None else part
    order = np.lexsort((-scores, image, label))
    group = np.flatnonzero(np.diff(label[order], prepend=-1) | np.diff(image[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(group, np.diff(group, append=len(order)))
    keep = np.sort(order[rank < max_dets])
    quality_name = next((key for key in QUALITIES if results and key in results[0]), None)
    cls, level = _part(results, "cls_score", where), _part(results, "level", where, largest=_MOST_LEVELS)
    quality = None if quality_name is None else _part(results, quality_name, where)
    parts = (None if part is None else part[keep] for part in (cls, quality, level))
    cls, quality, level = parts
    image, boxes = image[keep], boxes[keep]
    return Run(
        name=name,
        truth=truth,
        image=image,
        label=label[keep],
        boxes=boxes,
        scores=scores[keep],
        cls_scores=cls,
        quality=quality,
        quality_name=quality_name,
        levels=None if level is None else level.astype(int),
        overlaps=overlaps_of(truth, image, boxes),
    )


def _part(results: Sequence[dict], key: str, where: str, largest: float = 1.0) -> np.ndarray | None:
    if not any(key in r for r in results):
        return None
    for number, r in enumerate(results, start=1):
        value = r.get(key)
        if key not in r:
            raise UserError(f"{where}: detection {number} lacks {key}, which others have; evaluate the detector again.")
        if not is_number(value) or not 0 <= value <= largest:  # type: ignore[operator]
            raise UserError(f"{where}: detection {number} has {key} {value!r}, not a number from 0 to {largest:g}.")
    return np.array([r[key] for r in results], float)


def read_run(name: str, path: str, truth: Truth, max_dets: int = 100) -> Run:
    """Reads the run of a results file.

    Raises:
        UserError: the file cannot be read, or is not one of detections on the images of the truth.
    """
    results = read_results(path, truth.image_ids, truth.category_ids)
    return make_run(name, truth, results, max_dets=max_dets, where=path)
