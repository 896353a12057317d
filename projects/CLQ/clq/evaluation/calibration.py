"""Measures how well scores predict the fit of their boxes, which is the purpose of a quality branch.

AP shows this only in part.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
from pycocotools import mask


def best_ious(results: Iterable[Mapping], annotations: Iterable[Mapping]) -> tuple[np.ndarray, np.ndarray]:
    """Matches each detection with the ground truth of its image and class that it overlaps most.

    Args:
        results: COCO results of boxes (``image_id``, ``category_id``, ``bbox`` XYWH, ``score``).
        annotations: COCO annotations; crowds are ignored.

    Returns:
        The scores, (D,), and the IoUs, (D,), of D detections, grouped by image and class. The IoU is 0 where the image
        has no ground truth of the class.
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
    """Computes Spearman's rank correlation, which is Pearson's correlation of the ranks. Ties share their mean rank.

    Returns:
        A value from -1 to 1, or nan where either input is constant or has fewer than two values.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1]) if len(x) > 1 else float("nan")


def _ranks(x: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def score_iou_correlation(results: Iterable[Mapping], annotations: Iterable[Mapping]) -> float:
    """Computes the rank correlation of final score and true IoU over all detections; see :func:`best_ious`."""
    scores, ious = best_ious(results, annotations)
    return rank_correlation(scores, ious)
