"""Whether one variant beats another: paired differences of AP with intervals, by a bootstrap over images and seeds.

A difference of two APs varies with the test images and with the seeds of the trainings. Each resample draws images with
replacement, and seeds too, the same ones for both variants: what is hard for both cancels out. Of S seeds S - 1 are
drawn, since S draws would give a mean of few seeds too small a variance, by (S - 1) / S (Rao & Wu 1988).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clq.errors import UserError
from clq.evaluation.matches import Matches, average_precision

RESAMPLES = 2000
_LEVEL = 0.95
_QUANTILE = 1.959964  # of the normal distribution, for two sides of _LEVEL
_STREAM = 20  # of the random numbers; any other gives as good an interval


@dataclass(frozen=True)
class Resampled:
    """APs of one variant in percent: S runs (seeds), on all images and on B resamples of them.

    Attributes:
        whole: (S,) on the test set as it is.
        resamples: (B, S).
        images: I, how many the test set has.
    """

    whole: np.ndarray
    resamples: np.ndarray
    images: int


def resample_images(variants: Mapping[str, Sequence[Matches]], resamples: int = RESAMPLES) -> dict[str, Resampled]:
    """The AP of every run on the same resamples of the test images.

    Args:
        variants: name -> the matches of its runs, one a seed, in the same order of seeds for all.
        resamples: B.

    Raises:
        UserError: the runs are not of the same images and ground truths.
    """
    _check_same_images(variants)
    images = len(next(iter(variants.values()))[0].image_ids)
    generator = np.random.default_rng(_STREAM)
    weights = generator.multinomial(images, np.full(images, 1 / images), size=resamples)
    return {
        name: Resampled(
            np.concatenate([average_precision(run) for run in runs]),
            np.stack([average_precision(run, weights) for run in runs], axis=1),
            images,
        )
        for name, runs in variants.items()
    }


def _check_same_images(variants: Mapping[str, Sequence[Matches]]) -> None:
    first = None
    for name, runs in variants.items():
        if not runs:
            raise UserError(f"{name}: has no run to compare; train at least one seed.")
        for run in runs:
            first = first or run
            if not np.array_equal(run.image_ids, first.image_ids) or not np.array_equal(run.truths, first.truths):
                raise UserError(
                    f"{name}: has a run on other test images or annotations; compare runs on the same ones."
                )


@dataclass(frozen=True)
class Difference:
    """AP of a variant less that of another, in percent points.

    Attributes:
        value: mean over seeds, on the test set as it is.
        low: lower end of the 95% interval.
        high: its upper end.
        seeds: how many both have.
        parts: what the variance is made of; None with one seed, where the interval is that of the images alone.
    """

    value: float
    low: float
    high: float
    seeds: int
    parts: "VarianceParts | None"

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def paired_difference(one: Resampled, other: Resampled) -> Difference:
    """The difference ``one - other`` with its 95% percentile interval.

    Args:
        one: of a variant, from :func:`resample_images`.
        other: of another variant, from the same call.

    Seeds that only one of the two has are left out.
    """
    seeds = min(len(one.whole), len(other.whole))
    whole = one.whole[:seeds] - other.whole[:seeds]
    resamples = one.resamples[:, :seeds] - other.resamples[:, :seeds]
    drawn = resamples.mean(1)
    if seeds > 1:
        generator = np.random.default_rng(_STREAM + 1)
        chosen = generator.integers(seeds, size=(len(resamples), seeds - 1))
        drawn = np.take_along_axis(resamples, chosen, axis=1).mean(1)
    low, high = np.nanquantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    parts = variance_parts(whole, resamples, one.images) if seeds > 1 else None
    return Difference(float(whole.mean()), float(low), float(high), seeds, parts)


@dataclass(frozen=True)
class VarianceParts:
    """Var(mean difference over S seeds on I images) = seed / S + image / I + both / (S I).

    Attributes:
        seed: variance between trainings, in AP squared.
        image: between images, times I.
        both: of what one training does on one image, times I.
    """

    seed: float
    image: float
    both: float

    def half_width(self, seeds: int, images: int) -> float:
        """Half of a 95% interval with so many seeds and images."""
        return _QUANTILE * math.sqrt(self.seed / seeds + self.image / images + self.both / (seeds * images))

    def seeds_needed(self, half_width: float, images: int) -> int | None:
        """The fewest seeds for a half-width on so many images; None where no number of seeds is enough."""
        left = (half_width / _QUANTILE) ** 2 - self.image / images
        return None if left <= 0 else max(1, math.ceil((self.seed + self.both / images) / left - 1e-9))

    def images_needed(self, half_width: float, seeds: int) -> int | None:
        """The fewest test images for a half-width with so many seeds; None where no number of images is enough."""
        left = (half_width / _QUANTILE) ** 2 - self.seed / seeds
        return None if left <= 0 else max(1, math.ceil((self.image + self.both / seeds) / left - 1e-9))


def variance_parts(whole: np.ndarray, resamples: np.ndarray, images: int) -> VarianceParts:
    """The parts of a difference's variance, by the method of moments; a part that comes out negative is 0.

    With i = image / I and b = both / I, the variance over resamples of images is i + b for one seed and i + b / S for
    the mean over S; the variance between seeds on the whole test set is seed + b.

    Args:
        whole: (S,) differences on the test set as it is, S at least 2.
        resamples: (B, S) differences on resamples of its images.
        images: I.
    """
    seeds = len(whole)
    of_one, of_mean = np.nanvar(resamples, axis=0, ddof=1).mean(), np.nanvar(resamples.mean(1), ddof=1)
    both = max(0.0, (of_one - of_mean) * seeds / (seeds - 1))
    image = max(0.0, of_one - both)
    seed = max(0.0, float(np.var(whole, ddof=1)) - both)
    return VarianceParts(seed, float(image) * images, float(both) * images)
