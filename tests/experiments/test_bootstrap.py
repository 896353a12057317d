import dataclasses
import math

import numpy as np
import pytest
from clq.errors import UserError
from clq.evaluation.matches import Matches, average_precision
from clq.experiments.bootstrap import (
    Difference,
    Resampled,
    VarianceParts,
    compare,
    paired_difference,
    resample_images,
    student_quantile,
    variance_parts,
)


def run(hits):
    """A run on images of one object each, which finds those that are said, at every IoU, with one score for all."""
    images, found = len(hits), np.flatnonzero(hits)
    return Matches(
        image_ids=np.arange(images),
        truths=np.ones((images, 1), np.uint16),
        counts=np.array([len(found)]),
        image=found,
        correct=np.full(len(found), 2**10 - 1, np.uint16),
        ignored=np.zeros(len(found), np.uint16),
    )


def test_the_same_images_are_drawn_for_all_variants_and_seeds():
    hits = np.arange(40) % 2 == 0
    resampled = resample_images({"a": {1: run(hits), 2: run(hits)}, "b": {1: run(hits)}}, resamples=50)
    a, b = resampled["a"], resampled["b"]
    assert a.whole.tolist() == [*average_precision(run(hits))] * 2 and a.images == 40
    assert a.resamples.shape == (50, 2) and b.resamples.shape == (50, 1)
    assert np.array_equal(a.resamples[:, 0], a.resamples[:, 1]) and np.array_equal(
        a.resamples, np.repeat(b.resamples, 2, 1)
    )
    assert np.ptp(a.resamples) > 10  # of images that are found and images that are not


def test_what_is_hard_for_both_cancels_out():
    random = np.random.default_rng(0)
    common = random.normal(50, 5, (300, 4))
    one = Resampled((1, 2, 3, 4), np.full(4, 51.5), common + 1.5, 100)
    other = Resampled((1, 2, 3, 4), np.full(4, 50.0), common, 100)
    difference = paired_difference(one, other)
    assert (difference.value, difference.low, difference.high) == pytest.approx((1.5, 1.5, 1.5))
    reverse = paired_difference(other, one)
    assert (reverse.value, reverse.low, reverse.high) == pytest.approx((-1.5, -1.5, -1.5))


def test_the_interval_of_images_alone_is_that_of_a_proportion():
    """Of 400 images one variant finds 60%, the other none: AP is nearly the proportion, whose variance is p q / I."""
    resampled = resample_images({"one": {3: run(np.arange(400) < 240)}, "none": {3: run(np.zeros(400, bool))}})
    difference = paired_difference(resampled["one"], resampled["none"])
    assert difference.value == pytest.approx(60, abs=0.6)
    assert difference.half_width == pytest.approx(1.96 * 100 * math.sqrt(0.6 * 0.4 / 400), rel=0.06)
    assert difference.parts is None and difference.seeds == 1


@pytest.mark.parametrize("seeds, quantile", [(2, 12.706), (3, 4.303), (5, 2.776)])  # from a table of Student's t
def test_the_interval_of_seeds_is_that_of_a_mean(seeds, quantile):
    """Images of no influence: t(S - 1) times s / sqrt(S) with the unbiased s, also for few seeds."""
    whole = np.random.default_rng(seeds).normal(2, 1, seeds)
    one = Resampled(tuple(range(seeds)), whole, np.tile(whole, (20000, 1)), 100)
    difference = paired_difference(one, dataclasses.replace(one, whole=0 * whole, resamples=0 * one.resamples))
    assert (difference.parts.image, difference.parts.both) == pytest.approx((0, 0), abs=1e-15)
    assert difference.parts.seed == pytest.approx(np.var(whole, ddof=1))
    assert difference.half_width == pytest.approx(quantile * np.std(whole, ddof=1) / math.sqrt(seeds), rel=0.02)
    assert difference.half_width == pytest.approx(difference.parts.half_width(seeds, 100), rel=0.02)


def test_quantiles_of_a_table():
    table = {1: 12.7062, 2: 4.3027, 3: 3.1824, 7: 2.3646, 10: 2.2281, 30: 2.0423, 1000: 1.9623, math.inf: 1.95996}
    assert {f: student_quantile(f) for f in table} == pytest.approx(table, abs=1e-4)


def test_degrees_of_freedom_by_hand():
    """Seeds make a third of the variance of the mean of 4: 3 / (1 / 3)^2 = 27 degrees, of which a table says 2.0518."""
    parts = VarianceParts(seed=4.0, image=200.0, both=0.0)
    assert parts.quantile(4, 100) == pytest.approx(2.0518, abs=1e-4)
    assert parts.half_width(4, 100) == pytest.approx(2.0518 * math.sqrt(1 + 2), abs=1e-3)


def test_what_is_clear():
    parts = VarianceParts(1.0, 0.0, 0.0)
    assert Difference(2.0, 1.0, 3.0, 3, parts).clear and Difference(-2.0, -3.0, -1.0, 3, parts).clear
    assert not Difference(1.0, -1.0, 3.0, 3, parts).clear
    assert not Difference(2.0, 1.0, 3.0, 1, None).clear  # of the images alone


def test_only_seeds_that_both_have_count():
    values = np.array([1.0, 30.0, 2.0])
    three = Resampled((1, 2, 3), values, np.tile(values, (10, 1)), 5)
    two = Resampled((3, 1), np.array([0.5, 0.0]), np.tile([0.5, 0.0], (10, 1)), 5)
    assert paired_difference(three, two).value == pytest.approx((1.0 + 1.5) / 2)
    assert paired_difference(two, three).value == pytest.approx(-(1.0 + 1.5) / 2)
    assert paired_difference(three, two).seeds == 2
    with pytest.raises(UserError, match=r"seeds \[1, 2, 3\] and \[7\]: none is common"):
        paired_difference(three, Resampled((7,), values[:1], np.tile(values[:1], (10, 1)), 5))


def test_every_variant_is_compared_with_the_reference():
    hits = {"all": np.ones(30), "some": np.arange(30) < 20, "few": np.arange(30) < 10}
    found = compare({name: {1: run(x), 2: run(x)} for name, x in hits.items()}, "some", resamples=100)
    assert list(found) == ["all", "few"]
    assert found["all"].low > 0 > found["few"].high
    assert found["all"].value == pytest.approx(100 - average_precision(run(hits["some"]))[0])


# Four resamples whose first seed moves by these; variance (unbiased) 4 / 3.
MOVES = np.array([1.0, 1.0, -1.0, -1.0])


def test_variance_of_images_by_hand():
    """Both seeds move alike: all of it is the images'. Seeds 1 and 3 have a variance of 2."""
    whole = np.array([1.0, 3.0])
    parts = variance_parts(whole, whole + MOVES[:, None], images=50)
    assert (parts.seed, parts.image, parts.both) == pytest.approx((2, 50 * 4 / 3, 0))
    assert parts.half_width(2, 50) == pytest.approx(student_quantile((7 / 3) ** 2) * math.sqrt(1 + 4 / 3))
    assert parts.half_width(8, 200) == pytest.approx(student_quantile(7 * (7 / 3) ** 2) * math.sqrt(1 / 4 + 1 / 3))


def test_variance_of_seeds_on_images_by_hand():
    """The seeds move without regard to each other: their mean has half the variance, and nothing is the images'."""
    whole, other = np.array([1.0, 3.0]), np.array([1.0, -1.0, 1.0, -1.0])
    parts = variance_parts(whole, whole + np.stack([MOVES, other], 1), images=50)
    assert (parts.seed, parts.image, parts.both) == pytest.approx((2 - 4 / 3, 0, 50 * 4 / 3))


def test_seeds_and_images_needed():
    parts = VarianceParts(seed=0.5, image=40.0, both=20.0)
    for half_width in (0.4, 0.7, 1.5):
        for images in (200, 500, 5000):
            needed = parts.seeds_needed(half_width, images)
            if needed is None:
                assert parts.half_width(1000, images) > half_width
            else:
                assert parts.half_width(needed, images) <= half_width
                assert needed == 2 or parts.half_width(needed - 1, images) > half_width
        for seeds in (3, 10, 100):
            needed = parts.images_needed(half_width, seeds, 100)
            if needed is None:
                assert parts.half_width(seeds, 10**5) > half_width
            else:
                assert parts.half_width(seeds, needed) <= half_width
                assert needed == 100 or parts.half_width(seeds, int(needed / 1.06)) > half_width
    assert parts.seeds_needed(0.1, 500) is None  # the images alone leave more
    assert parts.images_needed(0.4, 3, 100) is None  # and so do 3 seeds
    assert VarianceParts(0, 0, 0).seeds_needed(0.1, 10) == 2 and VarianceParts(0, 0, 0).images_needed(0.1, 3, 7) == 7


def test_runs_on_other_images_are_refused():
    with pytest.raises(UserError, match="b, seed 2: was tested on other images"):
        resample_images({"a": {1: run(np.ones(5))}, "b": {1: run(np.ones(5)), 2: run(np.ones(6))}})
    with pytest.raises(UserError, match="b: has no run to compare"):
        resample_images({"a": {1: run(np.ones(5))}, "b": {}})
