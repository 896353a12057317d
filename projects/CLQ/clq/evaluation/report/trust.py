"""Whether a score knows its box: final score, class score and output of the quality branch against the true IoU."""

from collections.abc import Iterator

import numpy as np

from clq.evaluation.calibration import rank_correlation
from clq.evaluation.report.matching import assign
from clq.evaluation.report.run import QUALITIES, SIZES, Run

BINS = 25  # as Kuzucu et al. use for LaECE
ON_OBJECT = 0.5  # true IoU from which a detection counts as one on an object


def quantities(run: Run) -> dict[str, np.ndarray]:
    """What is compared with the true IoU, each (D,): the final score, and its parts if the results have them."""
    found = {"final score": run.scores}
    if run.cls_scores is not None:
        found["class score"] = run.cls_scores
    if run.quality is not None and run.quality_name is not None:
        found[QUALITIES[run.quality_name]] = run.quality
    return found


def bin_of(score: np.ndarray) -> np.ndarray:
    """The bin of each score: 25 of equal width, closed on the right, the first on both sides."""
    return np.clip(np.ceil(score * BINS).astype(int) - 1, 0, BINS - 1)


def reliability(score: np.ndarray, iou: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean score (B,), the mean IoU (B,) and the number of detections (B,) in each bin of the score."""
    bins = bin_of(score)
    count = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bins, weights=x, minlength=BINS) / count for x in (score, iou)]
    return means[0], means[1], count


def localization_aware_error(
    score: np.ndarray, iou: np.ndarray, label: np.ndarray, objects: np.ndarray
) -> tuple[float, np.ndarray]:
    r"""LaECE_0, the localization-aware expected calibration error of Kuzucu et al. (ECCV 2024), after Oksuz et al.

    :math:`\frac{1}{K} \sum_c \sum_j \frac{|D_j^c|}{|D^c|} \, |\bar p_j^c - \bar u_j^c|`, where detections :math:`D^c`
    of class c lie in bin j by their score, :math:`\bar p` is their mean score and :math:`\bar u` their mean IoU. The
    IoU is that of one-to-one matches, 0 for a false positive: the second detection of an object counts as wrong.

    Args:
        score: (D,) of the detections that count.
        iou: (D,) IoU with the matched object, else 0.
        label: (D,) index of the class.
        objects: (K,) objects of each class. Classes without objects or detections do not count.

    Returns:
        The mean over classes, and the error of each class (K,), nan where it does not count.
    """
    cell = label * BINS + bin_of(score)
    size = len(objects) * BINS
    gap = np.abs(np.bincount(cell, weights=score - iou, minlength=size)).reshape(-1, BINS).sum(1)
    count = np.bincount(label, minlength=len(objects))
    with np.errstate(invalid="ignore"):
        errors = np.where((objects > 0) & (count > 0), gap / count, np.nan)
    return mean(errors), errors


def mean(values: np.ndarray) -> float:
    """The mean of those values that are not nan; nan if none is."""
    good = values[~np.isnan(values)]
    return float(good.mean()) if len(good) else float("nan")


def agreement(score: np.ndarray, iou: np.ndarray) -> dict[str, float]:
    """How well a score (D,) and the true IoU (D,) agree: mean of their distance, and two correlations."""
    if not len(score):
        return dict.fromkeys(("mean_distance", "pearson", "spearman"), float("nan"))
    with np.errstate(invalid="ignore", divide="ignore"):
        pearson = float(np.corrcoef(score, iou)[0, 1]) if len(score) > 1 else float("nan")
    distance = float(np.abs(score - iou).mean())
    return {"mean_distance": distance, "pearson": pearson, "spearman": rank_correlation(score, iou)}


def trust(run: Run) -> dict[str, dict]:
    """The numbers of all quantities of a run.

    Returns:
        For each of :func:`quantities` a dict: ``all`` and ``on_objects`` (detections with a true IoU of at least .5)
        with the numbers of :func:`agreement`, the number of ``detections`` and, for all, ``laece``; and for the final
        score alone ``class``, ``size`` and ``level``, each a dict of such numbers by name.
    """
    iou, matched = run.true_iou, assign(run)
    counts, objects = ~matched.ignored, run.truth.objects
    numbers: dict[str, dict] = {}
    for name, score in quantities(run).items():

        def part(chosen: np.ndarray, score: np.ndarray = score) -> dict[str, float]:
            use = chosen & counts
            laece, _ = localization_aware_error(score[use], matched.iou[use], run.label[use], objects)
            return {"detections": int(chosen.sum()), **agreement(score[chosen], iou[chosen]), "laece": laece}

        everything, on = np.ones(len(run), bool), iou >= ON_OBJECT
        on_objects = {"detections": int(on.sum()), **agreement(score[on], iou[on])}
        numbers[name] = {"all": part(everything), "on_objects": on_objects}
        if name == "final score":
            for kind, groups in (("class", _classes(run)), ("size", _sizes(run)), ("level", _levels(run))):
                numbers[name][kind] = {group: part(chosen) for group, chosen in groups}
    return numbers


def _classes(run: Run) -> Iterator[tuple[str, np.ndarray]]:
    for k, name in enumerate(run.truth.names):
        if (chosen := run.label == k).any():
            yield name, chosen


def _sizes(run: Run) -> Iterator[tuple[str, np.ndarray]]:
    names = run.size_names()
    for size in SIZES:
        yield size, names == size


def _levels(run: Run) -> Iterator[tuple[str, np.ndarray]]:
    if run.levels is not None:
        for level in np.unique(run.levels):
            yield f"level {level}", run.levels == level
