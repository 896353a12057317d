"""Computes COCO's box metrics and the calibration of scores from the files that a training has written."""

import contextlib
import io

import numpy as np
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets

from clq.evaluation.calibration import score_iou_correlation
from clq.evaluation.results_file import read_results, read_truth

# Position of each metric in the list of twelve that COCOeval computes.
_STATISTICS = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR": 8}
METRICS = (*_STATISTICS, "score-IoU")


def box_metrics(annotations_file: str, results_file: str, max_dets: int = 100) -> dict[str, float]:
    """Evaluates detections as COCOEvaluator does, and adds the average recall and the calibration of scores.

    Args:
        annotations_file: path of the COCO json with the ground truth.
        results_file: path of the COCO results that COCOEvaluator wrote (``coco_instances_results.json``).
        max_dets: number of detections per image that count, at least 10.

    Returns:
        A value for each of :data:`METRICS`. COCO's average precisions, and its average recall at ``max_dets``
        detections, are in percent. They are nan if there is no object of the size in question, and 0 if nothing was
        detected at all. ``score-IoU`` is Spearman's correlation of score and IoU, from -1 to 1.

    Raises:
        UserError: the results cannot be read, or are those of another data set.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # hides the progress that pycocotools prints
        truth = read_truth(annotations_file)
        results = read_results(results_file, truth.getImgIds(), truth.getCatIds())
        if not results:
            return {**dict.fromkeys(_STATISTICS, 0.0), "score-IoU": float("nan")}
        evaluation = COCOevalMaxDets(truth, truth.loadRes(results), "bbox")
        evaluation.params.maxDets = [1, 10, max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = np.where(evaluation.stats < 0, np.nan, evaluation.stats * 100)
    metrics = {name: float(stats[position]) for name, position in _STATISTICS.items()}
    return {**metrics, "score-IoU": score_iou_correlation(results, truth.dataset["annotations"])}
