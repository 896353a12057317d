"""Curves and thresholds by hand, and as scikit-learn computes them."""

import numpy as np
import pytest
from clq.evaluation.report.matching import assign
from clq.evaluation.report.operating import at_precision, best_f1, class_points, curve, curve_of
from made_runs import BOX, REFERENCES, found, narrow, recorded, run


def test_precision_and_recall_as_scikit_learn():
    made, references = recorded(), REFERENCES["references"]
    got = curve_of(made, assign(made, 0.5))
    assert got.thresholds[::-1] == pytest.approx(references["thresholds"])
    assert got.precision[::-1] == pytest.approx(references["precision"])
    found_in_all = got.recall[-1]  # scikit-learn's recall is among what was detected at all
    assert got.recall[::-1] / found_in_all == pytest.approx(references["recall_of_found"])


def test_thresholds_by_hand():
    # With falling score: right, right, wrong, right, wrong; five objects.
    scores, correct = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([1, 1, 0, 1, 0], bool)
    got = curve(scores, correct, 5)
    assert got.f1 == pytest.approx([2 / 6, 4 / 7, 4 / 8, 6 / 9, 6 / 10])
    best = best_f1(got)
    assert (best.threshold, best.precision, best.recall) == pytest.approx((0.55, 3 / 4, 3 / 5))
    assert at_precision(got, 0.75).threshold == pytest.approx(0.55)
    assert at_precision(got, 0.76).threshold == pytest.approx(0.75)
    assert at_precision(got, 1).recall == pytest.approx(2 / 5)


def test_equal_scores_are_not_divided():
    got = curve(np.array([0.5, 0.5, 0.2]), np.array([True, False, False]), 1)
    assert got.thresholds.tolist() == [0.5, 0.2] and got.precision.tolist() == [0.5, 1 / 3]
    assert at_precision(got, 0.9) is None


def test_close_scores_are_divided_between_them():
    scores = np.array([0.5000002, 0.5000001])
    point = best_f1(curve(scores, np.array([True, False]), 1))
    assert (scores >= point.threshold).tolist() == [True, False]


def test_classes_without_objects_have_no_threshold_and_those_without_a_hit_none_that_is_good():
    results = [found(0, 0, narrow(0.9), 0.8), found(0, 0, [300, 0, 9, 9], 0.4), found(0, 2, BOX, 0.9)]
    made = run([(0, 0, BOX), (0, 1, BOX)], results, names=("cat", "dog", "bird"))
    points = class_points(made, assign(made, 0.5), 0.95)
    assert list(points) == ["cat", "dog"] and points["dog"] == (None, None)
    assert [p.threshold for p in points["cat"]] == pytest.approx([0.6, 0.6])
    assert best_f1(curve_of(run([], []), assign(run([], []), 0.5))) is None
