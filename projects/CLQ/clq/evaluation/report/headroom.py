"""What AP would be if one thing were right: the quality, the ranking, the classes; and with another exponent α.

Everything here is computed from detections after NMS, which has used the scores that the detector was trained with. See
:mod:`clq.evaluation.report.candidates` for what is computed from the candidates before NMS.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import nms

from clq.evaluation.report.matching import Matcher
from clq.evaluation.report.operating import MATCH_IOU
from clq.evaluation.report.run import Run

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0)
NMS_THRESH = 0.6  # of this project's detectors; results do not say which one was used
_EXACT = 1e-3  # largest error of log scores that rounding explains


@dataclass(frozen=True)
class Exponents:
    """The exponents of the class score and of the quality, whose powers multiply to the final score."""

    cls: float
    quality: float


def find_exponents(run: Run) -> Exponents | None:
    """Reads the exponents off the results: the log score is a linear function of the logs of its two parts.

    Returns:
        The exponents, rounded to four digits; None if the results lack a part, if the parts vary too little to tell, or
        if the scores are not such a product.
    """
    if run.cls_scores is None or run.quality is None:
        return None
    use = (run.cls_scores > 0) & (run.quality > 0) & (run.scores > 0)
    parts = np.log(np.stack([run.cls_scores[use], run.quality[use]], axis=1))
    if len(parts) < 2:
        return None
    target = np.log(run.scores[use])
    found: np.ndarray
    found, _, rank, _ = np.linalg.lstsq(parts, target, rcond=1e-6)
    if rank < 2 or np.abs(parts @ found - target).max() > _EXACT:
        return None
    return Exponents(*(round(float(x), 4) for x in found))


def headroom(run: Run, nms_thresh: float = NMS_THRESH) -> dict[str, float]:
    """AP in percent as it is (``AP``), and as it would be.

    Args:
        run: the detections.
        nms_thresh: IoU above which the worse of two detections is removed where one of them has got another class.

    Returns:
        ``AP``; ``true_quality``: the quality is the true IoU, or, where the score has no quality that is known, the
        score is multiplied by the true IoU; ``true_ranking``: the true IoU itself ranks the boxes; ``true_class``: each
        detection that overlaps an object by at least .5 has the class of the one that it overlaps most, and NMS is
        repeated.
    """
    matcher, iou, exponents = Matcher(run), run.true_iou, find_exponents(run)
    if exponents is not None and run.cls_scores is not None:
        better = run.cls_scores**exponents.cls * iou**exponents.quality
    else:
        better = run.scores * iou
    relabelled = with_true_classes(run, nms_thresh)
    return {
        "AP": matcher.ap(),
        "true_quality": matcher.ap(better),
        "true_ranking": matcher.ap(iou),
        "true_class": Matcher(relabelled).ap(),
    }


def with_true_classes(run: Run, nms_thresh: float) -> Run:
    """The detections with the class of the object that each overlaps most, from an IoU of .5 on, after another NMS."""
    iou, truth = run.overlaps.best(~run.overlaps.crowd, len(run))
    own, _ = run.overlaps.best(run.same_class & ~run.overlaps.crowd, len(run))
    wrong = (iou >= MATCH_IOU) & (own < MATCH_IOU)  # what fits an object of its class stays as it is
    label = run.label.copy()
    label[wrong] = run.truth.label[truth[wrong]]
    group = run.image * len(run.truth.names) + label
    touched = np.flatnonzero(np.isin(group, group[wrong]))  # elsewhere NMS has nothing new to remove
    touched = touched[np.argsort(group[touched], kind="stable")]
    corners = np.concatenate([run.boxes[:, :2], run.boxes[:, :2] + run.boxes[:, 2:]], axis=1)
    keep = np.ones(len(run), bool)
    for members in np.split(
        touched, np.flatnonzero(np.diff(group[touched])) + 1
    ):  # batched_nms looks at all of them for each group
        keep[members] = False
        again = nms(torch.from_numpy(corners[members]), torch.from_numpy(run.scores[members]), nms_thresh)
        keep[members[again.numpy()]] = True
    return run.changed(keep, label=label)


def sweep(run: Run) -> dict[float, float]:
    """AP in percent for several exponents α of the quality, the trained one included; empty if the parts are unknown.

    The exponent of the class score stays as it is.
    """
    exponents = find_exponents(run)
    if exponents is None or run.cls_scores is None or run.quality is None:
        return {}
    matcher, cls = Matcher(run), run.cls_scores**exponents.cls
    return {a: matcher.ap(cls * run.quality**a) for a in sorted({*ALPHAS, exponents.quality})}
