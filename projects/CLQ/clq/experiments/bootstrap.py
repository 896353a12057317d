"""Whether one variant beats another: paired differences of AP with intervals, by a bootstrap over images and seeds.

A difference of two APs varies with the test images and with the seeds of the trainings. Each resample draws images with
replacement, and seeds too, the same ones for both variants: what is hard for both cancels out. Of S seeds S - 1 are
drawn, since S draws would give a mean of few seeds too small a variance, by (S - 1) / S (Rao & Wu 1988).

The standard deviation of the resamples is the standard error of the difference. Few seeds know their own spread badly,
so an interval is as many standard errors wide as Student's t says, with Satterthwaite's degrees of freedom: S - 1 if
seeds make all of the variance, and many if images do. In a simulation with normal errors (1,500 cases of 400 resamples
each; seeds made 100%, 90%, 50% or 10% of the variance) 95% intervals held the truth in 87% to 95% of cases with 2
seeds, in 92% to 96% with 3, and in 95% to 96% with 5 and with 8.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from clq.errors import UserError
from clq.evaluation.matches import Matches, average_precision

RESAMPLES = 2000
_LEVEL = 0.95
_STREAM = 20  # of the random numbers; any other gives as good an interval


@dataclass(frozen=True)
class Resampled:
    """APs of one variant in percent: S runs (seeds), on all images and on B resamples of them.

    Attributes:
        seeds: of the runs.
        whole: (S,) on the test set as it is.
        resamples: (B, S).
        images: I, how many the test set has.
    """

    seeds: tuple[int, ...]
    whole: np.ndarray
    resamples: np.ndarray
    images: int


def resample_images(variants: Mapping[str, Mapping[int, Matches]], resamples: int = RESAMPLES) -> dict[str, Resampled]:
    """The AP of every run on the same resamples of the test images.

    Args:
        variants: name -> seed -> the matches of that run.
        resamples: B.

    Raises:
        UserError: there is a variant without a run, or the runs are not of the same images and ground truths.
    """
    images = _images_of_all(variants)
    generator = np.random.default_rng(_STREAM)
    weights = generator.multinomial(images, np.full(images, 1 / images), size=resamples)
    return {
        name: Resampled(
            tuple(runs),
            np.concatenate([average_precision(run) for run in runs.values()]),
            np.stack([average_precision(run, weights) for run in runs.values()], axis=1),
            images,
        )
        for name, runs in variants.items()
    }


def _images_of_all(variants: Mapping[str, Mapping[int, Matches]]) -> int:
    first = None
    for name, runs in variants.items():
        if not runs:
            raise UserError(f"{name}: has no run to compare; train at least one seed.")
        for seed, run in runs.items():
            first = first or run
            if not (np.array_equal(run.image_ids, first.image_ids) and np.array_equal(run.truths, first.truths)):
                raise UserError(
                    f"{name}, seed {seed}: was tested on other images than the first run; compare like runs."
                )
    if first is None or not len(first.image_ids):
        raise UserError("there are no test images to compare runs on; give finished runs.")
    return len(first.image_ids)


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

    @property
    def clear(self) -> bool:
        """Whether the interval, of images and seeds, does not contain 0."""
        return self.parts is not None and (self.low > 0 or self.high < 0)


def paired_difference(one: Resampled, other: Resampled) -> Difference:
    """The difference ``one - other`` over the seeds that both have, with its 95% interval.

    Args:
        one: of a variant, from :func:`resample_images`.
        other: of another variant, from the same call.

    Raises:
        UserError: no seed is common to both.
    """
    common = [seed for seed in one.seeds if seed in other.seeds]
    if not common:
        raise UserError(
            f"seeds {list(one.seeds)} and {list(other.seeds)}: none is common; compare runs of the same seeds."
        )
    ours, theirs = ([side.seeds.index(seed) for seed in common] for side in (one, other))
    whole = one.whole[ours] - other.whole[theirs]
    resamples = drawn = one.resamples[:, ours] - other.resamples[:, theirs]
    parts, quantile = None, student_quantile(math.inf)
    if len(common) > 1:
        generator = np.random.default_rng(_STREAM + 1)
        chosen = generator.integers(len(common), size=(len(resamples), len(common) - 1))
        drawn = np.take_along_axis(resamples, chosen, axis=1)
        parts = variance_parts(whole, resamples, one.images)
        quantile = parts.quantile(len(common), one.images)
    value, half = float(whole.mean()), quantile * float(np.nanstd(drawn.mean(1), ddof=1))
    return Difference(value, value - half, value + half, len(common), parts)


def compare(
    variants: Mapping[str, Mapping[int, Matches]], reference: str, resamples: int = RESAMPLES
) -> dict[str, Difference]:
    """Each other variant's AP less that of the reference.

    Args:
        variants: see :func:`resample_images`.
        reference: name of one of them.
        resamples: of images and seeds.

    Raises:
        UserError: see :func:`resample_images` and :func:`paired_difference`.
    """
    found = resample_images(variants, resamples)
    return {name: paired_difference(found[name], found[reference]) for name in found if name != reference}


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

    def quantile(self, seeds: int, images: int) -> float:
        """Standard errors in half of a 95% interval: Student's t with Satterthwaite's degrees of freedom."""
        of_seeds, of_images = self._variances(seeds, images)
        # The variance of the seeds is estimated with S - 1 degrees of freedom; resamples of images, with very many.
        share = of_seeds / (of_seeds + of_images) if of_seeds else 0.0
        return student_quantile((seeds - 1) / share**2 if share else math.inf)

    def half_width(self, seeds: int, images: int) -> float:
        """Half of a 95% interval with so many seeds, at least 2, and images."""
        return self.quantile(seeds, images) * math.sqrt(sum(self._variances(seeds, images)))

    def seeds_needed(self, half_width: float, images: int) -> int | None:
        """The fewest seeds for a half-width on so many images; None where a thousand are not enough."""
        return next((s for s in range(2, 1001) if self.half_width(s, images) <= half_width), None)

    def images_needed(self, half_width: float, seeds: int, images: int) -> int | None:
        """How many test images, at least ``images``, give a half-width with so many seeds.

        To 5%, or None where a thousand times as many are not enough.
        """
        tried = (math.ceil(images * 1.05**k) for k in range(142))
        return next((i for i in tried if self.half_width(seeds, i) <= half_width), None)

    def _variances(self, seeds: int, images: int) -> tuple[float, float]:
        return (self.seed + self.both / images) / seeds, self.image / images


def student_quantile(freedom: float) -> float:
    """What the size of Student's t exceeds with a probability of 5%: 1.96 with many degrees of freedom.

    With t = sqrt(freedom) tan(x), the density of x is proportional to cos(x)^(freedom - 1).

    Args:
        freedom: degrees of freedom, at least 1.
    """
    if freedom > 1e5:
        return 1.959964
    x = np.linspace(0, math.pi / 2, 20001)
    density = np.abs(np.cos(x)) ** (freedom - 1)
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(np.interp(_LEVEL, mass / mass[-1], x))


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
