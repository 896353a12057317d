"""COCO's matches of a run, kept so that the AP of any choice of its test images costs milliseconds.

pycocotools matches detections with ground truths image by image; only afterwards it pools them. What it found out about
each image is kept here, so that a bootstrap over images needs no second matching. An AP from here is pycocotools' own,
on the images as they are and on a data set in which images are left out or stand several times (then but for detections
of equal score and class in one image, which pycocotools takes in turn with those of the image's copies).
"""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clq.errors import UserError
from clq.evaluation.results_file import read_results, read_truth
from clq.utils.files import write_atomically

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's T = 10 IoU thresholds
_RECALLS = np.linspace(0, 1, 101)  # and the recalls at which it reads precisions
_CHUNK = 1 << 20  # numbers in one intermediate array, about what fits into a cache


@dataclass(frozen=True)
class Matches:
    """Detections of a run on I images of K classes: D of them, by class and then by falling score.

    An AP depends on the order of scores alone, which is why they need not be kept themselves.

    Attributes:
        image_ids: (I,) as in the annotations, rising.
        truths: (I, K) ground truths that count, those of crowds and the like left out.
        counts: (K,) detections of each class.
        image: (D,) index of each detection's image in ``image_ids``.
        correct: (D,) bit t is set where it is a true positive at ``THRESHOLDS[t]``.
        ignored: (D,) bit t is set where it counts neither as true nor as false there.
    """

    image_ids: np.ndarray
    truths: np.ndarray
    counts: np.ndarray
    image: np.ndarray
    correct: np.ndarray
    ignored: np.ndarray

    def save(self, path: str) -> None:
        """Writes a compressed npz."""
        small = {"counts": np.uint32, "image": np.uint16 if len(self.image_ids) < 1 << 16 else np.uint32}
        arrays = {name: value.astype(small.get(name, value.dtype)) for name, value in asdict(self).items()}
        with write_atomically(path) as f:
            np.savez_compressed(f, **arrays)

    @classmethod
    def load(cls, path: str) -> "Matches":
        """Reads what :meth:`save` wrote.

        Raises:
            UserError: there is no such file, or it holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                matches = cls(**file)
                matches.check()
                return matches
        except FileNotFoundError as e:
            raise UserError(f"{path}: no such file; give the matches of a run that is finished.") from e
        except Exception as e:  # reading bytes that are no npz can raise anything
            raise UserError(
                f"{path}: holds no matches of a run, or is damaged; give a file that tools/ablate.py or tools/study.py "
                "wrote, or delete it and run them again."
            ) from e

    def check(self) -> None:
        """Checks types, sizes and ranges.

        Raises:
            ValueError: these are no matches of a run.
        """
        dimensions = {"image_ids": 1, "truths": 2, "counts": 1, "image": 1, "correct": 1, "ignored": 1}
        for name, dimension in dimensions.items():
            value = getattr(self, name)
            if value.ndim != dimension or value.dtype.kind not in "iu" or (name != "image_ids" and (value < 0).any()):
                raise ValueError(f"{name}: {value.dtype} of shape {value.shape}")
        detections = int(self.counts.sum(dtype=np.int64))
        if self.truths.shape != (len(self.image_ids), len(self.counts)) or any(
            len(x) != detections for x in (self.image, self.correct, self.ignored)
        ):
            raise ValueError("the sizes of the arrays do not agree")
        bits = np.concatenate([self.correct, self.ignored])
        if (bits >= 1 << len(THRESHOLDS)).any() or (self.image >= len(self.image_ids)).any():
            raise ValueError("a number is too large")
        for truths, part in self.of_classes():
            if (np.bincount(self.image[part], self.correct[part] & 1, len(truths)) > truths).any():
                raise ValueError("more true positives than objects")

    def of_classes(self) -> Iterator[tuple[np.ndarray, slice]]:
        """For each class its ground truths in each image (I,), and the place of its detections."""
        ends = np.cumsum(self.counts, dtype=np.int64)
        for k, (end, count) in enumerate(zip(ends, self.counts, strict=True)):
            yield self.truths[:, k], slice(int(end) - int(count), int(end))


def match_results(annotations_file: str, results_file: str, max_dets: int = 100) -> Matches:
    """The matches of COCO results, by pycocotools.

    Args:
        annotations_file: COCO json of the ground truth.
        results_file: COCO results, as COCOEvaluator writes them (``coco_instances_results.json``).
        max_dets: detections of an image and class that count, those with the highest scores.

    Raises:
        UserError: the results cannot be read, or are those of another data set.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = read_truth(annotations_file)
        results = read_results(results_file, truth.getImgIds(), truth.getCatIds())
        if not results:
            found = COCO()
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        else:
            found = truth.loadRes(results)
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.maxDets = [max_dets]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    return _gather(evaluation)


def _gather(evaluation: COCOeval) -> Matches:
    images, classes = list(evaluation.params.imgIds), list(evaluation.params.catIds)
    truths, parts = np.zeros((len(images), len(classes)), np.uint16), []
    counts = np.zeros(len(classes), np.int64)
    for k in range(len(classes)):
        of_class = []
        for i, entry in enumerate(evaluation.evalImgs[k * len(images) : (k + 1) * len(images)]):
            if entry is None:  # neither an object nor a detection
                continue
            truths[i, k] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
            ignored = np.asarray(entry["dtIgnore"], bool)
            correct = (np.asarray(entry["dtMatches"]) != 0) & ~ignored
            scores = np.asarray(entry["dtScores"], float)
            of_class.append((np.full(len(scores), i), scores, _bits(correct), _bits(ignored)))
        joined = [np.concatenate(column) for column in zip(*of_class, strict=True)] if of_class else _nothing()
        order = np.argsort(-joined[1], kind="stable")  # as pycocotools: ties in the order of images
        counts[k] = len(order)
        parts.append([column[order] for column in joined])
    image, _, correct, ignored = (np.concatenate(c) for c in zip(*(parts or [_nothing()]), strict=True))
    return Matches(np.asarray(images), truths, counts, image, correct, ignored)


def _nothing() -> list[np.ndarray]:
    return [np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.uint16), np.zeros(0, np.uint16)]


def _bits(flags: np.ndarray) -> np.ndarray:
    """(T, D) of flags -> (D,) of numbers whose bit t is flag t."""
    return (flags.astype(np.uint16) << np.arange(len(flags), dtype=np.uint16)[:, None]).sum(0, dtype=np.uint16)


def average_precision(matches: Matches, weights: np.ndarray | None = None) -> np.ndarray:
    """COCO's AP in percent, for every choice of images.

    Args:
        matches: of a run.
        weights: (B, I) integers, how many times each of B choices has each image; None: each image once.

    Returns:
        (B,): the mean over IoU thresholds and those classes that have an object in the choice; nan where none has.
    """
    if weights is None:
        weights = np.ones((1, len(matches.image_ids)), np.int64)
    weights = np.asarray(weights, np.int32)
    rows = max(1, _CHUNK // max(1, len(matches.image)))
    return np.concatenate([_ap(matches, weights[b : b + rows]) for b in range(0, len(weights), rows)] or [np.zeros(0)])


def _ap(matches: Matches, weights: np.ndarray) -> np.ndarray:
    total, present = np.zeros(len(weights)), np.zeros(len(weights), int)
    for truths, place in matches.of_classes():
        objects = weights @ truths.astype(np.int64)  # (B,)
        present += objects > 0
        if place.stop > place.start:
            total += _class_ap(matches, place, weights, objects)
    with np.errstate(invalid="ignore"):
        return np.where(present > 0, 100 * total / present, np.nan)


def _class_ap(matches: Matches, place: slice, weights: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """(B,) AP of one class as a fraction, 0 where a choice has no object of it.

    Precision can be highest only at a true positive, so that only these places are looked at. The precision to the
    right of each is read at as many of COCO's 101 recalls as its own recall passes.
    """
    image, correct, ignored = (x[place] for x in (matches.image, matches.correct, matches.ignored))
    some = np.flatnonzero(correct)  # D' detections that are true positives at some threshold
    weight, passed, total = weights[:, image], _recalls_passed(objects), np.zeros(len(weights))
    for t in range(len(THRESHOLDS)):
        if t == 0 or ignored.any():
            kept = (ignored >> t & 1) == 0
            counted = np.cumsum(weight * kept if ignored.any() else weight, axis=1, dtype=np.int32)[:, some]
        at = np.flatnonzero(correct[some] >> t & 1)
        true = np.cumsum(weight[:, some[at]], axis=1, dtype=np.int32)  # (B, D'')
        precision = (true / np.maximum(counted[:, at], 1))[:, ::-1]
        np.maximum.accumulate(precision, axis=1, out=precision)
        recalls = np.diff(passed(true), axis=1, prepend=np.int32(0))
        total += np.einsum("bd,bd->b", precision[:, ::-1], recalls)
    return total / (len(THRESHOLDS) * len(_RECALLS))


def _recalls_passed(objects: np.ndarray):
    """A function from true positives (B, D) to how many of COCO's 101 recalls they reach, given the objects (B,)."""
    numbers, which = np.unique(objects, return_inverse=True)
    most = int(numbers[-1]) if len(numbers) else 0
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.arange(most + 1) / numbers[:, None]
    table = np.searchsorted(_RECALLS, recall, side="right").astype(np.int32)
    table[numbers == 0] = 0
    table[:, 0] = 0  # recall 0 is passed with the first true positive: where there is none, nothing is read
    return lambda true: table[which[:, None], true]
