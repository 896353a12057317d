"""Precision, recall and F1 at each threshold, and the thresholds that are best for F1 or reach a wanted precision."""

from dataclasses import dataclass

import numpy as np

from clq.evaluation.report.matching import Assigned
from clq.evaluation.report.run import Run

MATCH_IOU = 0.5


@dataclass(frozen=True)
class Curve:
    """What is found at each of S thresholds, which fall.

    Attributes:
        thresholds: (S,) the distinct scores; detections from a threshold on count.
        precision: (S,) right detections / detections.
        recall: (S,) right detections / objects.
        objects: number of objects.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    objects: int

    @property
    def f1(self) -> np.ndarray:
        """(S,) harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return np.divide(2 * self.precision * self.recall, total, out=np.zeros_like(total), where=total > 0)


@dataclass(frozen=True)
class Point:
    """A chosen threshold, with what it gives on the images that it was chosen on."""

    threshold: float
    precision: float
    recall: float
    f1: float


def curve(scores: np.ndarray, correct: np.ndarray, objects: int) -> Curve:
    """The curve of detections with these scores (D,), which are right or wrong (D,)."""
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(correct[order])
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)) if len(order) else np.zeros(0, int)
    return Curve(scores[order][ends], right[ends] / (ends + 1), right[ends] / max(objects, 1), objects)


def curve_of(run: Run, assigned: Assigned, label: int | None = None) -> Curve:
    """The curve of a class, or of all classes together; detections on crowds do not count."""
    use = ~assigned.ignored if label is None else ~assigned.ignored & (run.label == label)
    objects = run.truth.objects if label is None else run.truth.objects[label]
    return curve(run.scores[use], assigned.correct[use], int(np.sum(objects)))


def best_f1(found: Curve) -> Point | None:
    """The point with the highest F1, of equal ones that with the highest threshold; None if no detection is right."""
    f1 = found.f1
    return _point(found, int(f1.argmax())) if f1.any() else None


def at_precision(found: Curve, wanted: float) -> Point | None:
    """The point with the highest recall among those that reach a precision; None if none does."""
    reached = np.flatnonzero((found.precision >= wanted) & (found.precision > 0))
    return _point(found, int(reached[-1])) if len(reached) else None


def _point(found: Curve, i: int) -> Point:
    # Halfway to the next score, so that rounding moves no detection to the other side.
    below = found.thresholds[i + 1] if i + 1 < len(found.thresholds) else found.thresholds[i]
    threshold = float(np.round((found.thresholds[i] + below) / 2, 6))
    if not below <= threshold <= found.thresholds[i]:
        threshold = float(found.thresholds[i])
    return Point(threshold, float(found.precision[i]), float(found.recall[i]), float(found.f1[i]))


def class_points(run: Run, assigned: Assigned, wanted: float) -> dict[str, tuple[Point | None, Point | None]]:
    """For each class that has objects the best point for F1 and the one that reaches a wanted precision."""
    points = {}
    for k, name in enumerate(run.truth.names):
        if run.truth.objects[k]:
            found = curve_of(run, assigned, k)
            points[name] = best_f1(found), at_precision(found, wanted)
    return points
