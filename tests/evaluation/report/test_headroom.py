"""What could be won, in cases where the answer is known."""

import numpy as np
import pytest
from clq.evaluation.report.headroom import find_exponents, headroom, sweep, with_true_classes
from clq.evaluation.report.matching import Matcher
from made_runs import BOX, found, narrow, run


def scored(objects, boxes, parts, exponents=(1.0, 0.5), **kinds):
    """A run whose scores are the product of powers of the parts (class score, predicted IoU)."""
    results = [
        found(0, 0, box, cls ** exponents[0] * quality ** exponents[1], cls_score=cls, predicted_iou=quality)
        for box, (cls, quality) in zip(boxes, parts, strict=True)
    ]
    return run(objects, results, names=("cat",), **kinds)


@pytest.mark.parametrize("exponents", [(1.0, 0.3), (0.5, 0.5), (1.0, 1.0)])
def test_exponents_are_read_off_the_scores(exponents):
    parts = np.random.default_rng(0).uniform(0.05, 1, (50, 2)).round(6)
    got = find_exponents(scored([(0, 0, BOX)], [BOX] * 50, parts.tolist(), exponents))
    assert (got.cls, got.quality) == pytest.approx(exponents, abs=1e-4)


def test_scores_that_are_no_product_have_no_exponents():
    random = np.random.default_rng(0)
    results = [
        found(0, 0, BOX, s, cls_score=c, predicted_iou=q) for s, c, q in random.uniform(0.1, 1, (20, 3)).tolist()
    ]
    assert find_exponents(run([(0, 0, BOX)], results)) is None
    assert find_exponents(run([(0, 0, BOX)], [found(0, 0, BOX, 0.5)])) is None
    constant = scored([(0, 0, BOX)], [BOX, BOX], [(0.5, 0.5), (0.5, 0.5)])  # nothing varies, so nothing shows
    assert find_exponents(constant) is None and sweep(constant) == {}


def test_the_sweep_finds_the_exponent_that_ranks_best():
    # At α = .5 the wrong detection comes first (.9 * .4^.5 = .57, and .5 * 1 = .5). The right one wins from α = .65 on:
    # .9 * .4^.6 = .519 > .5 > .9 * .4^.8 = .432.
    made = scored([(0, 0, BOX)], [[300, 300, 50, 50], BOX], [(0.9, 0.4), (0.5, 1.0)])
    got = sweep(made)
    assert got[0.5] == pytest.approx(50) and got[0.6] == pytest.approx(50) and got[0.8] == pytest.approx(100)
    assert got[0.5] == headroom(made)["AP"]


def test_a_perfect_quality_ranks_by_class_score_and_true_iou():
    # Three candidates of one cat. Right order: the exact box first.
    boxes, parts = [narrow(0.6), BOX, narrow(0.8)], [(0.9, 0.9), (0.8, 0.5), (0.85, 0.7)]
    made = scored([(0, 0, BOX)], boxes, parts, (1.0, 1.0))
    got = headroom(made)
    assert got["true_ranking"] == pytest.approx(100)
    assert got["true_quality"] == pytest.approx(100)  # .54, .80 and .68
    # As it is, .81, .595 and .4: up to IoU .6 the first is right, then up to .8 the second, then the third.
    assert got["AP"] == pytest.approx((3 * 100 + 4 * 50 + 3 * 100 / 3) / 10)


def test_without_parts_the_true_iou_multiplies_the_score():
    made = run([(0, 0, BOX)], [found(0, 0, narrow(0.6), 0.9), found(0, 0, BOX, 0.6)], names=("cat",))
    assert headroom(made)["true_quality"] == pytest.approx(100)  # .54 and .6
    assert headroom(made)["AP"] == pytest.approx((3 * 100 + 7 * 50) / 10)


def test_right_classes():
    dog = [300, 0, 100, 100]
    results = [
        found(0, 0, dog, 0.9),  # a dog, taken for a cat
        found(0, 1, [302, 0, 100, 100], 0.8),  # the dog: NMS now removes it beside the first
        found(0, 1, BOX, 0.7),  # a cat, taken for a dog
        found(0, 0, [0, 300, 50, 50], 0.6),  # nothing; the class stays
    ]
    made = run([(0, 0, BOX), (0, 1, dog)], results)
    fixed = with_true_classes(made, 0.6)
    assert fixed.label.tolist() == [1, 0, 0] and fixed.scores.tolist() == [0.9, 0.7, 0.6]
    assert headroom(made)["true_class"] == pytest.approx(100) == Matcher(fixed).ap()
    assert with_true_classes(made, 0.99).scores.tolist() == [0.9, 0.8, 0.7, 0.6]
