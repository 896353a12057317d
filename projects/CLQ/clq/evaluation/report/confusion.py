"""Which classes are taken for which."""

from dataclasses import dataclass

import numpy as np

from clq.evaluation.report.matching import Assigned
from clq.evaluation.report.operating import MATCH_IOU
from clq.evaluation.report.run import Run


@dataclass(frozen=True)
class Confusion:
    """Counts of objects and detections at a threshold.

    Attributes:
        counts: (K + 1, K + 1) rows by the true class, columns by the detected one. The last row has detections without
            an object, the last column objects without a detection.
        threshold: score from which detections count.
    """

    counts: np.ndarray
    threshold: float

    def largest(self, names: list[str], limit: int) -> list[tuple[str, str, int]]:
        """The pairs (true class, detected class, count) of different classes that are confused most often."""
        mixed = self.counts[:-1, :-1].copy()
        np.fill_diagonal(mixed, 0)
        order = np.argsort(-mixed, axis=None, kind="stable")[:limit]
        pairs = zip(*np.unravel_index(order, mixed.shape), strict=True)
        return [(names[i], names[j], int(mixed[i, j])) for i, j in pairs if mixed[i, j]]


def confusion(run: Run, assigned: Assigned, threshold: float) -> Confusion:
    """Pairs detections with objects one to one, and counts the pairs by their classes.

    First come the true positives of COCO's matching at IoU .5, so the diagonal has those that AP50 counts. What is left
    of objects and detections is then paired whatever the class, the highest IoU first, from .5 on.

    Args:
        run: the detections.
        assigned: their matches at IoU .5.
        threshold: score from which detections count.
    """
    size, pairs = len(run.truth.names) + 1, run.overlaps
    shown = (run.scores >= threshold) & ~assigned.ignored
    free_detection, free_truth = shown & ~assigned.correct, ~run.truth.crowd
    counts = np.zeros((size, size), int)
    hit = shown & assigned.correct
    np.add.at(counts, (run.label[hit], run.label[hit]), 1)
    free_truth[assigned.truth[hit]] = False
    near = np.flatnonzero((pairs.iou >= MATCH_IOU) & free_detection[pairs.detection] & free_truth[pairs.truth])
    for p in near[np.argsort(-pairs.iou[near], kind="stable")]:
        d, t = pairs.detection[p], pairs.truth[p]
        if free_detection[d] and free_truth[t]:
            free_detection[d] = free_truth[t] = False
            counts[run.truth.label[t], run.label[d]] += 1
    np.add.at(counts, (size - 1, run.label[free_detection]), 1)
    np.add.at(counts, (run.truth.label[free_truth], size - 1), 1)
    return Confusion(counts, threshold)
