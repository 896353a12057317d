"""All numbers of a report on one run."""

import contextlib
import io
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clq.evaluation.report.candidates import Candidates, nms_losses
from clq.evaluation.report.confusion import Confusion, confusion
from clq.evaluation.report.headroom import NMS_THRESH, find_exponents, headroom, sweep
from clq.evaluation.report.images import ImageError, image_errors
from clq.evaluation.report.matching import Assigned, assign
from clq.evaluation.report.operating import MATCH_IOU, Curve, Point, best_f1, class_points, curve_of
from clq.evaluation.report.run import Run
from clq.evaluation.report.tide import KINDS, error_costs, find_errors
from clq.evaluation.report.trust import trust

PRECISION = 0.9  # the wanted precision, unless another is given
_AREAS = {"small": "s", "medium": "m", "large": "l"}


@dataclass(frozen=True)
class Analysis:
    """What is known about a run.

    Attributes:
        run: the detections.
        assigned: their matches at IoU .5.
        coco: COCO's metrics in percent, see :func:`coco_metrics`.
        classes: COCO's metrics of each class that has objects, by name.
        precisions: mean over classes of the precision (101,) at COCO's recalls, by IoU ".50" and ".75".
        trust: see :func:`clq.evaluation.report.trust.trust`.
        curve: of all classes together at IoU .5, and ``best``, its point with the highest F1.
        points: for each class its best point for F1 and the one that reaches ``precision``.
        precision: the wanted precision.
        errors: number of errors of each of TIDE's kinds.
        costs: what they cost, see :func:`clq.evaluation.report.tide.error_costs`.
        confusion: at the best threshold; None if no detection is right.
        headroom: see :func:`clq.evaluation.report.headroom.headroom`.
        alpha: exponent of the quality in the score, None if unknown, and ``sweep``: AP by that exponent.
        nms: see :func:`clq.evaluation.report.candidates.nms_losses`; None without candidates.
        images: errors of the images, from the best to the worst.
    """

    run: Run
    assigned: Assigned
    coco: dict[str, float]
    classes: dict[str, dict[str, float]]
    precisions: dict[str, np.ndarray]
    trust: dict[str, dict]
    curve: Curve
    best: Point | None
    points: dict[str, tuple[Point | None, Point | None]]
    precision: float
    errors: dict[str, int]
    costs: dict[str, float]
    confusion: Confusion | None
    headroom: dict[str, float]
    alpha: float | None
    sweep: dict[float, float]
    nms: dict[str, Any] | None
    images: list[ImageError]

    @property
    def threshold(self) -> float:
        """The score from which detections are shown: the best for F1, or above all scores if none is right."""
        return self.best.threshold if self.best is not None else float("inf")

    def numbers(self) -> dict[str, Any]:
        """The numbers in a form that json can hold."""
        truth = self.run.truth
        return {
            "images": len(truth.image_ids),
            "objects": int(truth.objects.sum()),
            "detections": len(self.run),
            "coco": self.coco,
            "classes": self.classes,
            "trust": self.trust,
            "best_f1": self.best and asdict(self.best),
            "wanted_precision": self.precision,
            "thresholds": {
                name: {"f1": f1 and asdict(f1), "precision": high and asdict(high)}
                for name, (f1, high) in self.points.items()
            },
            "tide": {"cost": self.costs, "errors": self.errors},
            "headroom": self.headroom,
            "alpha": self.alpha,
            "alpha_sweep": {f"{alpha:g}": ap for alpha, ap in self.sweep.items()},
            "nms": self.nms,
        }

    def summary(self) -> dict[str, float]:
        """The most important numbers, by a short name, for the metrics of a training."""
        score = self.trust["final score"]["all"]
        return {
            "score_iou_distance": score["mean_distance"],
            "LaECE": score["laece"],
            "pearson": score["pearson"],
            "spearman": score["spearman"],
            "F1": self.best.f1 if self.best is not None else 0.0,
            **{f"TIDE_{kind}": self.costs[kind] for kind in KINDS},
            **{f"AP_{name}": ap for name, ap in self.headroom.items() if name != "AP"},
        }


def analyse(
    run: Run,
    evaluation: COCOeval,
    *,
    precision: float = PRECISION,
    nms_thresh: float = NMS_THRESH,
    candidates: Candidates | None = None,
) -> Analysis:
    """Computes all numbers.

    Args:
        run: the detections.
        evaluation: pycocotools' evaluation of the same detections, accumulated.
        precision: the wanted precision of thresholds.
        nms_thresh: threshold of the detector's NMS.
        candidates: of some images, if they were kept.
    """
    assigned = assign(run, MATCH_IOU)
    curve = curve_of(run, assigned)
    best, errors, exponents = best_f1(curve), find_errors(run, assigned), find_exponents(run)
    overall, classes, precisions = coco_metrics(run, evaluation)
    counts = {kind: int((errors.kind == kind).sum()) for kind in KINDS}
    return Analysis(
        run=run,
        assigned=assigned,
        coco=overall,
        classes=classes,
        precisions=precisions,
        trust=trust(run),
        curve=curve,
        best=best,
        points=class_points(run, assigned, precision),
        precision=precision,
        errors={**counts, "Miss": int(errors.missed.sum())},
        costs=error_costs(run, assigned, errors),
        confusion=None if best is None else confusion(run, assigned, best.threshold),
        headroom=headroom(run, nms_thresh),
        alpha=None if exponents is None else exponents.quality,
        sweep=sweep(run),
        nms=None if candidates is None else nms_losses(candidates, run.truth),
        images=image_errors(run, assigned, best.threshold if best is not None else float("inf")),
    )


def evaluate_coco(run: Run, max_dets: int = 100) -> COCOeval:
    """pycocotools' evaluation of a run, accumulated."""
    truth = run.truth
    found = COCO()
    with contextlib.redirect_stdout(io.StringIO()):  # hides the progress that pycocotools prints
        found.dataset = {**truth.coco.dataset, "annotations": _annotations(run)}
        found.createIndex()
        evaluation = COCOevalMaxDets(truth.coco, found, "bbox")
        evaluation.params.maxDets = [1, 10, max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _annotations(run: Run) -> list[dict]:
    """The detections as pycocotools indexes them, which is what its loadRes makes of results."""
    ids = zip(run.image.tolist(), run.label.tolist(), run.boxes.tolist(), run.scores.tolist(), strict=True)
    return [
        {
            "id": number,
            "image_id": run.truth.image_ids[image],
            "category_id": run.truth.category_ids[label],
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "score": score,
        }
        for number, (image, label, box, score) in enumerate(ids, start=1)
    ]


def coco_metrics(
    run: Run, evaluation: COCOeval
) -> tuple[dict[str, float], dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """COCO's metrics in percent: of all classes, of each class that has objects, and the curves of the precision.

    ``AP`` is the mean over IoUs .50 to .95, ``AP50`` and ``AP75`` are at one IoU, ``APs``, ``APm`` and ``APl`` are of
    small, medium and large objects. ``AR`` is the recall with all detections, ``AR1`` and ``AR10`` with so many of each
    image, ``ARs`` and so on by size. They are nan where there is no such object.
    """
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]  # (T, R, K, A, 3) and (T, K, A, 3)

    def part(classes: slice) -> dict[str, float]:
        p, r = precision[:, :, classes], recall[:, classes]
        areas = {f"AP{letter}": _percent(p[..., i, -1]) for i, letter in enumerate(_AREAS.values(), start=1)}
        recalls = {f"AR{letter}": _percent(r[..., i, -1]) for i, letter in enumerate(_AREAS.values(), start=1)}
        aps = {name: _percent(x[..., 0, -1]) for name, x in (("AP", p), ("AP50", p[0]), ("AP75", p[5]))}
        ars = {"AR1": _percent(r[..., 0, 0]), "AR10": _percent(r[..., 0, 1]), "AR": _percent(r[..., 0, -1])}
        return {**aps, **areas, **ars, **recalls}

    names, objects = run.truth.names, run.truth.objects
    classes = {names[k]: {"objects": int(objects[k]), **part(slice(k, k + 1))} for k in np.flatnonzero(objects)}
    curves = {iou: precision[t][:, objects > 0, 0, -1] for iou, t in ((".50", 0), (".75", 5)) if objects.any()}
    return part(slice(None)), classes, {iou: values.mean(axis=1) for iou, values in curves.items()}


def _percent(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(100 * known.mean()) if known.size else float("nan")
