import math

import numpy as np
import pytest
from clq.evaluation.calibration import best_ious, rank_correlation, score_iou_correlation


def annotation(image, category, box, crowd=0):
    return {"image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}


def result(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


TRUTH = [
    annotation(1, 1, [0, 0, 10, 10]),
    annotation(1, 1, [20, 0, 10, 10]),
    annotation(1, 2, [40, 0, 10, 10]),
    annotation(2, 1, [0, 0, 10, 10]),
    annotation(2, 1, [30, 0, 10, 10], crowd=1),
]
FOUND = [
    result(1, 1, [0, 0, 10, 10], 0.9),  # exact
    result(1, 1, [20, 0, 10, 5], 0.8),  # half of the second
    result(1, 1, [40, 0, 10, 10], 0.7),  # on an object of another class
    result(2, 1, [5, 0, 10, 10], 0.6),  # 50 of 150
    result(2, 1, [30, 0, 10, 10], 0.5),  # on a crowd
    result(3, 1, [0, 0, 10, 10], 0.4),  # in an image without objects
]


def test_each_detection_is_held_against_its_image_and_class():
    scores, ious = best_ious(FOUND, TRUTH)
    assert scores.tolist() == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    assert ious == pytest.approx([1, 0.5, 0, 1 / 3, 0, 0])


def test_rank_correlation_by_hand():
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([0.1, 5, 1000])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)
    # Ranks 1 2 3 4 and 1 2.5 2.5 4: covariance 4.5, variances 5 and 4.5.
    assert rank_correlation(np.arange(4), np.array([0, 7, 7, 9])) == pytest.approx(4.5 / math.sqrt(5 * 4.5))
    assert math.isnan(rank_correlation(np.arange(3), np.ones(3)))
    assert math.isnan(rank_correlation(np.zeros(0), np.zeros(0)))


def test_correlation_of_detections():
    # Scores fall: ranks 6 5 4 3 2 1. IoUs 1, 1/2, 0, 1/3, 0, 0: ranks 6 5 2 4 2 2. Sums of products 13.5, 17.5, 15.5.
    assert score_iou_correlation(FOUND, TRUTH) == pytest.approx(13.5 / math.sqrt(17.5 * 15.5))
    assert math.isnan(score_iou_correlation([], TRUTH))
