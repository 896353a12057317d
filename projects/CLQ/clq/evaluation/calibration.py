"""Whether scores know how well their boxes fit: what a quality branch is for, and AP shows only in part."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
from pycocotools import mask


def best_ious(results: Iterable[Mapping], annotations: Iterable[Mapping]) -> tuple[np.ndarray, np.ndarray]:
    """Each detection's score, and its IoU with the ground truth of its image and class that it overlaps most.

    Args:
        results: COCO results of boxes (``image_id``, ``category_id``, ``bbox`` XYWH, ``score``).
        annotations: COCO annotations; crowds count as absent.

    Returns:
        (D,) scores and (D,) IoUs, 0 where there is no such ground truth, in the order of image and class.
    """
    truth, found = defaultdict(list), defaultdict(list)
    for a in annotations:
        if not a.get("iscrowd"):
            truth[a["image_id"], a["category_id"]].append(a["bbox"])
    for r in results:
        found[r["image_id"], r["category_id"]].append(r)
    scores, ious = [np.zeros(0)], [np.zeros(0)]
    for key, group in found.items():
        scores.append(np.array([r["score"] for r in group]))
        boxes = truth[key]
        iou = mask.iou([r["bbox"] for r in group], boxes, [0] * len(boxes)).max(axis=1) if boxes else 0.0
        ious.append(np.broadcast_to(iou, len(group)))
    return np.concatenate(scores), np.concatenate(ious)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's: Pearson's correlation of the ranks (ties share their mean rank); nan where either is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1]) if len(x) > 1 else float("nan")


def _ranks(x: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def score_iou_correlation(results: Iterable[Mapping], annotations: Iterable[Mapping]) -> float:
    """Spearman's rank correlation between final score and true IoU over all detections; see :func:`best_ious`."""
    return rank_correlation(*best_ious(results, annotations))
