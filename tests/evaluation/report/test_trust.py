"""Scores against true IoUs: values worked out by hand, a slow version, and scipy's recorded correlations."""

import math

import numpy as np
import pytest
from clq.evaluation.report.matching import assign
from clq.evaluation.report.trust import agreement, bin_of, localization_aware_error, reliability, trust
from made_runs import BOX, REFERENCES, found, narrow, recorded, run


def test_bins_are_closed_on_the_right():
    assert bin_of(np.array([0, 0.02, 0.04, 0.041, 0.9999, 1])).tolist() == [0, 0, 0, 1, 24, 24]


def test_laece_by_hand():
    # Class 0: two detections in the bin (.88, .92], mean score .9 and mean IoU .8; one in (.48, .52], score .5, IoU 0.
    # Its error is 2/3 * .1 + 1/3 * .5. Class 1 has one detection, of score .6 and IoU 1. Class 2 has no objects.
    score, iou = np.array([0.89, 0.91, 0.5, 0.6, 0.7]), np.array([0.7, 0.9, 0, 1, 0])
    mean, errors = localization_aware_error(score, iou, np.array([0, 0, 0, 1, 2]), np.array([2, 1, 0, 3]))
    assert errors[:2] == pytest.approx([0.7 / 3, 0.4]) and np.isnan(errors[2:]).all()
    assert mean == pytest.approx((0.7 / 3 + 0.4) / 2)


def slow_laece(made):
    """Loops over classes and bins, as the definition is written."""
    matched, errors = assign(made), []
    for k in range(len(made.truth.names)):
        mine = [d for d in range(len(made)) if made.label[d] == k and not matched.ignored[d]]
        if not mine or not any((made.truth.label == k) & ~made.truth.crowd):
            continue
        error = 0
        for j in range(25):
            bin_ = [d for d in mine if (j / 25 < made.scores[d] or j == 0) and made.scores[d] <= (j + 1) / 25]
            if bin_:
                gap = sum(made.scores[d] for d in bin_) / len(bin_) - sum(matched.iou[d] for d in bin_) / len(bin_)
                error += len(bin_) / len(mine) * abs(gap)
        errors.append(error)
    return sum(errors) / len(errors)


def test_numbers_of_a_run_as_scipy_and_the_slow_version_compute_them():
    made = recorded()
    numbers = trust(made)["final score"]
    for name, value in REFERENCES["references"]["scipy"].items():
        assert numbers["all"][name] == pytest.approx(value, abs=1e-9)
    assert numbers["all"]["laece"] == pytest.approx(slow_laece(made), abs=1e-12)
    assert sum(part["detections"] for part in numbers["class"].values()) == len(made)
    assert sum(part["detections"] for part in numbers["size"].values()) == len(made)
    assert math.isnan(numbers["class"]["fish"]["laece"])  # there are detections of fish, but no fish


def test_the_second_detection_of_an_object_counts_as_wrong_in_laece_only():
    made = run([(0, 0, BOX)], [found(0, 0, BOX, 1.0), found(0, 0, narrow(0.8), 0.8)])
    numbers = trust(made)["final score"]["all"]
    assert numbers["mean_distance"] == pytest.approx(0)
    assert numbers["laece"] == pytest.approx(0.8 / 2)


def test_parts_of_the_score_levels_and_sizes():
    parts = [(0.9, 1.0, 0), (0.5, 0.6, 2), (0.4, 0.2, 2)]
    boxes = [[0, 0, 10, 10], [0, 0, 50, 50], [0, 0, 100, 100]]
    results = [
        found(0, 0, b, c * q, cls_score=c, predicted_iou=q, level=level)
        for b, (c, q, level) in zip(boxes, parts, strict=True)
    ]
    numbers = trust(run([(0, 0, BOX)], results))
    assert list(numbers) == ["final score", "class score", "predicted IoU"]
    ious = [0.01, 0.25, 1]
    assert numbers["predicted IoU"]["all"]["mean_distance"] == pytest.approx((0.99 + 0.35 + 0.8) / 3)
    assert numbers["class score"]["on_objects"] == pytest.approx(
        {"detections": 1, "mean_distance": 0.6, "pearson": math.nan, "spearman": math.nan}, nan_ok=True
    )
    final = numbers["final score"]
    assert {name: part["detections"] for name, part in final["level"].items()} == {"level 0": 1, "level 2": 2}
    assert {name: part["mean_distance"] for name, part in final["size"].items()} == pytest.approx(
        {name: abs(c * q - iou) for name, (c, q, _), iou in zip(("small", "medium", "large"), parts, ious, strict=True)}
    )


def test_reliability_and_agreement_by_hand():
    score, iou = np.array([0.21, 0.23, 0.9]), np.array([0.1, 0.3, 1.0])
    means, ious, count = reliability(score, iou)
    assert (means[5], ious[5], count[5]) == pytest.approx((0.22, 0.2, 2)) and count.sum() == 3 and np.isnan(ious[0])
    assert agreement(score, iou)["mean_distance"] == pytest.approx((0.11 + 0.07 + 0.1) / 3)
    assert all(math.isnan(value) for value in agreement(np.zeros(0), np.zeros(0)).values())
