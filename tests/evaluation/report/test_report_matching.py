"""Matches and APs of detections that are ranked anew: those of pycocotools."""

import numpy as np
import pytest
from clq.evaluation.report.analysis import evaluate_coco
from clq.evaluation.report.matching import Matcher, assign
from clq.evaluation.report.run import make_run
from made_runs import BOX, found, narrow, recorded, run


def rescored(original, scores):
    truth = original.truth
    results = [
        found(truth.image_ids[i], truth.category_ids[k], box, s)
        for i, k, box, s in zip(original.image, original.label, original.boxes.tolist(), scores.tolist(), strict=True)
    ]
    return make_run("again", truth, results)


def coco_ap(made):
    precision = evaluate_coco(made).eval["precision"][:, :, :, 0, -1]
    return 100 * precision[precision > -1].mean()


@pytest.mark.parametrize("seed", range(6))
def test_other_scores_give_the_ap_that_pycocotools_gives_them(seed):
    original, random = recorded(), np.random.default_rng(seed)
    scores = random.random(len(original)).round(1 if seed % 2 else 6)  # with many equal scores, or with none
    assert Matcher(original).ap(scores) == pytest.approx(coco_ap(rescored(original, scores)), abs=1e-9)


def test_an_object_is_matched_once_and_a_crowd_as_often_as_it_is_found():
    crowd = [200, 0, 100, 100]
    made = run(
        [(0, 0, BOX), (0, 0, crowd, "crowd")],
        [
            found(0, 0, narrow(0.7), 0.9),
            found(0, 0, BOX, 0.8),  # fits better but comes later
            found(0, 0, [200, 0, 50, 50], 0.7),  # inside of the crowd
            found(0, 0, [200, 50, 50, 50], 0.6),
            found(0, 1, BOX, 0.5),  # of another class
        ],
    )
    at_half, at_three_quarters = assign(made, 0.5), assign(made, 0.75)
    assert at_half.correct.tolist() == [True, False, False, False, False]
    assert at_three_quarters.correct.tolist() == [False, True, False, False, False]
    assert at_half.ignored.tolist() == [False, False, True, True, False]
    assert at_half.truth.tolist() == [0, -1, -1, -1, -1] and at_half.iou.tolist() == pytest.approx([0.7, 0, 0, 0, 0])
    correct, _, _ = Matcher(made, [0.5, 0.75]).match()
    assert correct.tolist() == [0b01, 0b10, 0, 0, 0]


def test_of_an_image_and_class_only_the_best_detections_count():
    results = [found(0, 0, BOX, s) for s in (0.1, 0.3, 0.2)] + [found(0, 1, BOX, 0.05)]
    made = make_run("few", run([(0, 0, BOX)], []).truth, results, max_dets=2)
    assert made.scores.tolist() == [0.3, 0.2, 0.05]


def test_nothing_detected_and_nothing_to_detect():
    assert Matcher(run([(0, 0, BOX)], [])).ap() == 0
    assert np.isnan(Matcher(run([], [found(0, 0, BOX, 0.5)])).ap())
    assert np.isnan(Matcher(run([(0, 0, BOX, "crowd")], [found(0, 0, BOX, 0.5)])).ap())
