"""The errors of a detector in the six kinds of TIDE, and the AP that each costs.

Bolya et al., *TIDE: A General Toolbox for Identifying Object Detection Errors*, ECCV 2020. Each wrong detection is an
error of one kind; an object that no detection has found, and that no class or box error explains, is missed. The cost
of a kind is the AP at IoU .5 that would be won if all its errors were corrected.

As in ``tidecv``, AP here is the mean over all classes that have objects or detections. A class of which objects are
detected where there are none thus counts as 0, while COCO's AP leaves it out.
"""

from dataclasses import dataclass

import numpy as np

from clq.evaluation.report.matching import Assigned
from clq.evaluation.report.run import Run

KINDS = {
    "Cls": "right place, wrong class",
    "Loc": "right class, box too inaccurate (IoU from 0.1 to 0.5)",
    "Both": "wrong class and inaccurate box",
    "Dupe": "second detection of an object",
    "Bkg": "there is no object",
    "Miss": "an object that is not detected",
}
FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU of a match, and IoU up to which a detection is on background
_RECALLS = np.arange(101) / 100


@dataclass(frozen=True)
class Errors:
    """The kind of each error.

    Attributes:
        kind: (D,) name of the kind of each detection; empty where it is right. Detections on crowds have a kind too.
        truth: (D,) object that a class or box error is about, -1 elsewhere.
        mends: (D,) whether correcting it would find that object: the object is not found otherwise, and no detection
            with a higher score has a class or box error about it.
        missed: (M,) whether an object is missed.
    """

    kind: np.ndarray
    truth: np.ndarray
    mends: np.ndarray
    missed: np.ndarray


def find_errors(run: Run, assigned: Assigned) -> Errors:
    """Sorts the errors of a run, which was matched at IoU .5, into kinds."""
    pairs, count = run.overlaps, len(run)
    used = np.zeros(len(run.truth.label), bool)
    used[assigned.truth[assigned.correct]] = True
    same, thing = run.same_class, ~pairs.crowd
    own_iou, own = pairs.best(same & thing, count)
    other_iou, other = pairs.best(~same & thing, count)
    twice_iou, _ = pairs.best(same & thing & used[pairs.truth], count)
    conditions = {
        "": assigned.correct,
        "Loc": (own_iou >= BACKGROUND) & (own_iou <= FOREGROUND),
        "Cls": other_iou >= FOREGROUND,
        "Dupe": twice_iou >= FOREGROUND,
        "Bkg": np.maximum(own_iou, other_iou) <= BACKGROUND,
    }
    kind = np.select(list(conditions.values()), list(conditions), default="Both")
    truth = np.where(kind == "Loc", own, np.where(kind == "Cls", other, -1))
    mends, claimed = np.zeros(count, bool), used.copy()
    for d in np.argsort(-run.scores, kind="stable"):
        if truth[d] >= 0 and not claimed[truth[d]]:
            mends[d] = claimed[truth[d]] = True
    return Errors(kind, truth, mends, ~claimed & ~run.truth.crowd)


def error_costs(run: Run, assigned: Assigned, errors: Errors) -> dict[str, float]:
    """The AP at IoU .5 in percent (``AP50``), and what is won if the errors of a kind are corrected, by kind.

    Corrected class and box errors become right where they find an object, and vanish elsewhere, as errors of the other
    kinds do. Missed objects vanish. ``FalsePos`` is what is won if all wrong detections vanish, and ``FalseNeg`` if all
    objects that were not found do.
    """
    objects, labels = run.truth.objects, run.label
    counts, correct = ~assigned.ignored, assigned.correct
    found = np.zeros(len(run.truth.label), bool)
    found[assigned.truth[correct]] = True

    def ap(keep: np.ndarray, right: np.ndarray, label: np.ndarray, number: np.ndarray) -> float:
        return _mean_ap(label[keep], run.scores[keep], right[keep], number)

    costs = {"AP50": ap(counts, correct, labels, objects)}
    for kind in KINDS:
        of_kind = errors.kind == kind
        right, label = correct | (of_kind & errors.mends), labels.copy()
        if kind == "Cls":
            label[right & of_kind] = run.truth.label[errors.truth[right & of_kind]]
        number = objects - _per_class(run, errors.missed) if kind == "Miss" else objects
        costs[kind] = max(ap((counts & ~of_kind) | right, right, label, number) - costs["AP50"], 0.0)
    lost = ~found & ~run.truth.crowd
    costs["FalsePos"] = _mean_ap(labels[counts], correct[counts].astype(float), correct[counts], objects)
    costs["FalseNeg"] = ap(counts, correct, labels, objects - _per_class(run, lost))
    return {k: v - costs["AP50"] if k.startswith("False") else v for k, v in costs.items()}


def _per_class(run: Run, chosen: np.ndarray) -> np.ndarray:
    return np.bincount(run.truth.label[chosen], minlength=len(run.truth.names))


def _mean_ap(label: np.ndarray, scores: np.ndarray, correct: np.ndarray, objects: np.ndarray) -> float:
    """Mean AP in percent of detections (D,) over the classes that have objects (K,) or detections."""
    detections = np.bincount(label, minlength=len(objects))
    total, classes = 0.0, np.flatnonzero((objects > 0) | (detections > 0))
    for k in classes[objects[classes] > 0]:
        mine = label == k
        right = np.cumsum(correct[mine][np.argsort(-scores[mine], kind="stable")])
        precision = right / np.arange(1, len(right) + 1)
        precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        total += precision[np.searchsorted(right / objects[k], _RECALLS, side="left")].mean()
    return float(100 * total / len(classes)) if len(classes) else float("nan")
