"""COCO's box metrics and the calibration of scores, from files: what a finished training has left behind."""

import contextlib
import io
import json

import numpy as np
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools.coco import COCO

from clq.evaluation.calibration import score_iou_correlation

# Name -> place in COCOeval's list of twelve.
_STATISTICS = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR": 8}
METRICS = (*_STATISTICS, "score-IoU")


def box_metrics(annotations_file: str, results_file: str, max_dets: int = 100) -> dict[str, float]:
    """Evaluates detections as COCOEvaluator does, and adds what it leaves out.

    Args:
        annotations_file: COCO json of the ground truth.
        results_file: COCO results, as COCOEvaluator writes them (``coco_instances_results.json``).
        max_dets: detections an image that count.

    Returns:
        :data:`METRICS`: COCO's average precisions and average recall (at ``max_dets``) in percent, nan where there is
        no object of a size (0 where nothing at all was detected); and Spearman's correlation of score and IoU
        (``score-IoU``), -1 to 1.
    """
    with open(results_file, encoding="utf-8") as f:
        results = json.load(f)
    if not results:
        return {**dict.fromkeys(_STATISTICS, 0.0), "score-IoU": float("nan")}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO(annotations_file)
        evaluation = COCOevalMaxDets(truth, truth.loadRes(results), "bbox")
        evaluation.params.maxDets = [1, 10, max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = np.where(evaluation.stats < 0, np.nan, evaluation.stats * 100)
    metrics = {name: float(stats[place]) for name, place in _STATISTICS.items()}
    return {**metrics, "score-IoU": score_iou_correlation(results, truth.dataset["annotations"])}
