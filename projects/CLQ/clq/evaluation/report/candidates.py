"""What NMS loses: the candidates before it, kept for a few images, against the detections after it."""

import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask

from clq.data.formats.values import is_number
from clq.errors import UserError
from clq.evaluation.report.headroom import ALPHAS, find_exponents
from clq.evaluation.report.matching import Matcher
from clq.evaluation.report.operating import MATCH_IOU
from clq.evaluation.report.run import Run, make_run
from clq.evaluation.report.truth import Truth, truth_of
from clq.evaluation.results_file import check_results
from clq.utils.files import read_json, write_atomically

FILE_NAME = "coco_candidates.json"


@dataclass(frozen=True)
class Candidates:
    """The candidates of some images, before NMS.

    Attributes:
        image_ids: ids of these images.
        results: COCO results with the parts of the score, in pixels of the image.
        nms_thresh: IoU above which the detector's NMS removes the lower of two boxes of the same class.
        max_detections: upper bound on the number of detections of an image.
    """

    image_ids: list
    results: list[dict]
    nms_thresh: float
    max_detections: int

    def save(self, folder: str) -> None:
        """Writes ``coco_candidates.json``."""
        with write_atomically(os.path.join(folder, FILE_NAME), "w") as f:
            json.dump(vars(self), f)


def read_candidates(path: str, truth: Truth) -> Candidates:
    """Reads what an evaluation with ``TEST.REPORT_CANDIDATES`` has written.

    Raises:
        UserError: the file cannot be read, or does not belong to the images of the truth.
    """
    content = read_json(path)
    fault = f"{path}: holds no candidates; evaluate the detector again with TEST.REPORT_CANDIDATES."
    if not isinstance(content, dict) or set(content) != {"image_ids", "results", "nms_thresh", "max_detections"}:
        raise UserError(fault)
    ids, known = content["image_ids"], set(truth.image_ids)
    if not isinstance(ids, list) or not all(type(i) in (int, str) and i in known for i in ids):
        raise UserError(f"{path}: has images that the annotations lack; give the json that was evaluated.")
    if not is_number(content["nms_thresh"]) or type(content["max_detections"]) is not int:
        raise UserError(fault)
    check_results(path, content["results"], ids, truth.category_ids)
    return Candidates(**content)


def nms_losses(candidates: Candidates, truth: Truth) -> dict[str, Any]:
    """What NMS has lost on the images whose candidates were kept.

    Returns:
        ``images``, ``candidates`` and ``detections``: their numbers; ``AP``: of the detections as NMS selects them;
        ``AP_best_box``: if each detection had, of its own box and of those that it has removed, the one that fits its
        object best; ``iou`` and ``iou_best_box``: the mean true IoU of detections of at least .5, and what it would be;
        ``lost_objects`` of ``objects``: objects that a candidate overlaps by at least .5 and no detection does;
        ``alpha``: AP by the exponent of the quality, with NMS repeated for each, empty without the parts of the score.
    """
    part = truth_of(truth.coco, candidates.image_ids)
    run = make_run("candidates", part, candidates.results, max_dets=len(candidates.results) + 1)
    kept, keeper = select(run, run.scores, candidates)
    after = run.changed(kept)
    boxes, iou, best = best_boxes(run, kept, keeper)
    good = iou >= MATCH_IOU
    exponents = find_exponents(run)
    numbers: dict[str, Any] = {
        "images": len(part.image_ids),
        "candidates": len(run),
        "detections": len(kept),
        "AP": Matcher(after).ap(),
        "AP_best_box": Matcher(run.changed(kept, boxes=boxes)).ap(),
        "iou": float(iou[good].mean()) if good.any() else float("nan"),
        "iou_best_box": float(best[good].mean()) if good.any() else float("nan"),
        "objects": int(part.objects.sum()),
        "lost_objects": int((_overlapped(run) & ~_overlapped(after)).sum()),
        "alpha": {},
    }
    if exponents is not None and run.cls_scores is not None and run.quality is not None:
        for alpha in sorted({*ALPHAS, exponents.quality}):
            scores = run.cls_scores**exponents.cls * run.quality**alpha
            chosen, _ = select(run, scores, candidates)
            numbers["alpha"][alpha] = Matcher(run.changed(chosen)).ap(scores[chosen])
    return numbers


def select(run: Run, scores: np.ndarray, settings: Candidates) -> tuple[np.ndarray, np.ndarray]:
    """Class-wise NMS, and the bound on the detections of an image.

    Returns:
        Indices of what is kept, and for each candidate (D,) the index of the one that has removed it, or its own.
    """
    keeper = np.arange(len(run))
    group = run.image * len(run.truth.names) + run.label
    order = np.lexsort((-scores, group))
    for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        overlap = mask.iou(run.boxes[members], run.boxes[members], [0] * len(members)) if len(members) > 1 else None
        free = np.ones(len(members), bool)
        for i in range(len(members) if overlap is not None else 0):
            if free[i]:
                taken = free & (overlap[i] > settings.nms_thresh)  # type: ignore[index]
                taken[: i + 1] = False
                keeper[members[taken]] = members[i]
                free &= ~taken
    kept = np.flatnonzero(keeper == np.arange(len(run)))
    kept = kept[np.lexsort((-scores[kept], run.image[kept]))]
    first = np.searchsorted(run.image[kept], run.image[kept])
    return np.sort(kept[np.arange(len(kept)) - first < settings.max_detections]), keeper


def best_boxes(run: Run, kept: np.ndarray, keeper: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each kept detection, its box and those that it has removed: the one that fits its object best.

    Args:
        run: the candidates.
        kept: indices of the detections.
        keeper: (D,) of :func:`select`.

    Returns:
        Boxes (D, 4), which differ from those of the run only where a better one was removed; and for the kept
        detections their IoU with the object that each overlaps most, and the IoU of the best box with that object.
    """
    pairs, boxes = run.overlaps, run.boxes.copy()
    iou, truth = pairs.best(run.same_class & ~pairs.crowd, len(run))
    best = iou.copy()
    mine = keeper[pairs.detection]  # the detection that each pair belongs to
    same_object = (truth[mine] == pairs.truth) & run.same_class & ~pairs.crowd
    for p in np.flatnonzero(same_object):
        if pairs.iou[p] > best[mine[p]]:
            best[mine[p]], boxes[mine[p]] = pairs.iou[p], run.boxes[pairs.detection[p]]
    return boxes, iou[kept], best[kept]


def _overlapped(run: Run) -> np.ndarray:
    """(M,) whether a detection of its class overlaps an object by at least .5."""
    pairs, found = run.overlaps, np.zeros(len(run.truth.label), bool)
    found[pairs.truth[run.same_class & ~pairs.crowd & (pairs.iou >= MATCH_IOU)]] = True
    return found
