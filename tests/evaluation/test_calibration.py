"""IoUs and rank correlations, worked out by hand."""

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
    result(1, 1, [0, 0, 10, 10], 0.9),  # fits exactly
    result(1, 1, [20, 0, 10, 5], 0.8),  # covers half of the second object
    result(1, 1, [40, 0, 10, 10], 0.7),  # on an object of another class
    result(2, 1, [5, 0, 10, 10], 0.6),  # intersection 50, union 150
    result(2, 1, [30, 0, 10, 10], 0.5),  # on a crowd
    result(3, 1, [0, 0, 10, 10], 0.4),  # in an image without objects
]


def test_each_detection_is_compared_with_the_objects_of_its_image_and_class():
    scores, ious = best_ious(FOUND, TRUTH)
    assert scores.tolist() == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    assert ious == pytest.approx([1, 0.5, 0, 1 / 3, 0, 0])


def test_rank_correlation_by_hand():
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([0.1, 5, 1000])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)
    # The ranks are 1 2 3 4 and 1 2.5 2.5 4. Their covariance is 4.5, their variances are 5 and 4.5 (not divided by n).
    assert rank_correlation(np.arange(4), np.array([0, 7, 7, 9])) == pytest.approx(4.5 / math.sqrt(5 * 4.5))
    assert math.isnan(rank_correlation(np.arange(3), np.ones(3)))
    assert math.isnan(rank_correlation(np.zeros(0), np.zeros(0)))


def test_correlation_of_score_and_iou_by_hand():
    # The scores decrease, so their ranks are 6 5 4 3 2 1. The IoUs 1, 1/2, 0, 1/3, 0, 0 have the ranks 6 5 2 4 2 2.
    # About the mean rank of 3.5, the sum of products is 13.5, and the sums of squares are 17.5 and 15.5.
    assert score_iou_correlation(FOUND, TRUTH) == pytest.approx(13.5 / math.sqrt(17.5 * 15.5))
    assert math.isnan(score_iou_correlation([], TRUTH))
