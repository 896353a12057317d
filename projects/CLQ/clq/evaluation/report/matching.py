"""COCO's greedy matching, repeated in fractions of a second when detections are ranked anew.

pycocotools takes minutes for COCO's 5,000 images. Here, IoUs are computed once, and all IoU thresholds are the bits of
one integer, so that one pass over the overlapping pairs matches at all of them. The matches are those of pycocotools.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clq.evaluation.matches import THRESHOLDS, Matches, average_precision
from clq.evaluation.report.run import Run

_ANY = 1e-9  # threshold of LaECE_0, at which every overlap is a match


@dataclass(frozen=True)
class Assigned:
    """What COCO's matching says on the D detections of a run at one IoU threshold.

    Attributes:
        correct: (D,) whether it is a true positive.
        ignored: (D,) whether it counts neither as true nor as false, because it is on a crowd.
        truth: (D,) index of the object, -1 where it is not a true positive.
        iou: (D,) IoU with that object, else 0.
    """

    correct: np.ndarray
    ignored: np.ndarray
    truth: np.ndarray
    iou: np.ndarray


class Matcher:
    """Matches the detections of a run with objects of their class, the highest score first.

    Args:
        run: the detections.
        thresholds: T IoU thresholds, rising.
    """

    def __init__(self, run: Run, thresholds: Sequence[float] = tuple(THRESHOLDS)):
        self.run, self._all = run, (1 << len(thresholds)) - 1
        limits = np.minimum(np.asarray(thresholds), 1 - 1e-10)  # as in pycocotools
        pairs = run.overlaps
        use = np.flatnonzero(run.same_class & (pairs.iou >= limits[0]))
        powers = 1 << np.arange(len(limits))
        self._bits = ((pairs.iou[use, None] >= limits) @ powers).tolist()
        self._truth, self._crowd = pairs.truth[use].tolist(), pairs.crowd[use].tolist()
        self._detections, first = np.unique(pairs.detection[use], return_index=True)
        self._pairs = list(zip(first.tolist(), [*first[1:].tolist(), len(use)], strict=True)) if len(first) else []

    def match(self, scores: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Matches with these scores (D,), or with those of the run.

        Returns:
            Bits (D,) of the thresholds at which a detection is a true positive, bits (D,) of those at which it is
            ignored, and the object (D,) that it is matched with at the lowest threshold, or -1.
        """
        scores = self.run.scores if scores is None else scores
        count = len(self.run)
        correct, ignored, matched = np.zeros(count, np.uint16), np.zeros(count, np.uint16), np.full(count, -1)
        taken: dict[int, int] = {}
        for i in np.argsort(-scores[self._detections], kind="stable").tolist():
            left, true, begin_end = self._all, 0, self._pairs[i]
            d = self._detections[i]
            for p in range(*begin_end):
                if self._crowd[p]:
                    ignored[d] |= self._bits[p] & left
                    continue
                truth = self._truth[p]
                got = self._bits[p] & left & ~taken.get(truth, 0)
                if got:
                    taken[truth] = taken.get(truth, 0) | got
                    left &= ~got
                    true |= got
                    if got & 1:
                        matched[d] = truth
            correct[d] = true
        return correct, ignored, matched

    def matches(self, scores: np.ndarray | None = None) -> Matches:
        """What :func:`clq.evaluation.matches.average_precision` reads, with these scores or those of the run."""
        run, truth = self.run, self.run.truth
        scores = run.scores if scores is None else scores
        correct, ignored, _ = self.match(scores)
        order = np.lexsort((run.image, -scores, run.label))
        truths = np.zeros((len(truth.image_ids), len(truth.names)), np.uint16)
        np.add.at(truths, (truth.image[~truth.crowd], truth.label[~truth.crowd]), 1)
        counts = np.bincount(run.label, minlength=len(truth.names))
        image_ids = np.asarray(truth.image_ids)
        return Matches(image_ids, truths, counts, run.image[order], correct[order], ignored[order])

    def ap(self, scores: np.ndarray | None = None) -> float:
        """COCO's AP in percent with these scores, or with those of the run; nan where there is no object."""
        return float(average_precision(self.matches(scores))[0])


def assign(run: Run, threshold: float = _ANY, scores: np.ndarray | None = None) -> Assigned:
    """Matches at a single IoU threshold; by default every overlap is enough."""
    correct, ignored, matched = Matcher(run, [threshold]).match(scores)
    pairs, iou = run.overlaps, np.zeros(len(run))
    chosen = matched[pairs.detection] == pairs.truth
    iou[pairs.detection[chosen]] = pairs.iou[chosen]
    return Assigned(correct > 0, ignored > 0, matched, iou)
