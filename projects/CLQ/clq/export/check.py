"""Compares what a file detects with what the detector itself detects.

Two sums of the same numbers in another order differ in their last digits. So a score may cross a threshold that it all
but equals, and so may an IoU. A detection that only one side has is therefore no difference if its score is within the
tolerance of the score threshold, or of the lowest score of an image that has all the detections it may have, or if NMS
removed it on the other side by a hair: for an IoU that all but equals the threshold, or for a box of the same class
whose score all but equals its own. Detections of this kind may be a small share of all.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor
from torchvision.ops import box_iou

from clq.errors import UserError
from clq.export.exported import QUALITY_FIELDS, as_inputs, run_batch
from clq.export.formats import Runner
from clq.export.graph import DetectorGraph
from clq.modeling.meta_arch.clq import CLQ
from clq.modeling.postprocess import DetectionSelector

BOX_TOLERANCE, SCORE_TOLERANCE = 0.01, 1e-4  # pixels of the graph's input; score
_BORDERLINE_SHARE = 0.1  # of the detections


@dataclass
class Agreement:
    """What was compared.

    Attributes:
        images: number of images.
        detections: number of detections that both sides have.
        borderline: number of detections that one side has because they all but equal a threshold.
        box: largest difference of a box, in pixels.
        score: largest difference of a score or of a part of it.
    """

    images: int = 0
    detections: int = 0
    borderline: int = 0
    box: float = 0.0
    score: float = 0.0

    def __str__(self) -> str:
        parts = f"{self.images} images, {self.detections} detections: boxes within {self.box:.1e} px, "
        borderline = f"; {self.borderline} at a threshold" if self.borderline else ""
        return f"{parts}scores within {self.score:.1e}{borderline}"


def check_detections(runner: Runner, model: CLQ, batches: Iterable[Sequence[Tensor]]) -> Agreement:
    """Compares the detections in each batch of images.

    Args:
        runner: what runs the file.
        model: the detector, in eval mode.
        batches: batches of images (C, H, W), pixels from 0 to 255 in the order of ``INPUT.FORMAT``.

    Raises:
        UserError: they differ by more than the tolerances.
    """
    agreement = Agreement()
    for images in batches:
        with torch.no_grad():
            expected = model([{"image": x} for x in images])
        for x, found, output in zip(images, run_batch(runner, images), expected, strict=True):
            try:
                _compare(found, output["instances"], model.selector, agreement)
            except _Differs as e:
                size = f"{x.shape[-1]} x {x.shape[-2]}"
                raise UserError(f"the exported detector differs from the detector on an image of {size}: {e}.") from e
            agreement.images += 1
    if agreement.borderline > max(4, _BORDERLINE_SHARE * agreement.detections):
        raise UserError(f"too many scores and overlaps are at a threshold to compare the detections ({agreement}).")
    return agreement


def check_raw(runner: Runner, graph: DetectorGraph, batches: Iterable[Sequence[Tensor]]) -> Agreement:
    """Compares the raw outputs of a file for batches of images with those of the graph that it was made of.

    Args:
        runner: what runs the file.
        graph: graph with raw outputs.
        batches: batches of images (C, H, W), pixels from 0 to 255 in the order of ``INPUT.FORMAT``.

    Returns:
        The agreement, in which each location counts as a detection.

    Raises:
        UserError: they differ by more than the tolerances.
    """
    agreement = Agreement()
    for images in batches:
        inputs = as_inputs(images)
        with torch.no_grad():
            expected = graph(*inputs)
        boxes, *scores = ((x - y).abs().max().item() for x, y in zip(runner(*inputs), expected, strict=True))
        if not (boxes <= BOX_TOLERANCE and all(x <= SCORE_TOLERANCE for x in scores)):  # NaN is no agreement
            largest = f"boxes by {boxes:.1e} px, scores by {', '.join(f'{x:.1e}' for x in scores)}"
            raise UserError(f"the exported detector differs from the detector: {largest}.")
        agreement.box, agreement.score = max(agreement.box, boxes), max(agreement.score, *scores)
        agreement.images += len(images)
        agreement.detections += expected[0].shape[0] * expected[0].shape[1]
    return agreement


class _Differs(Exception):
    """Two detectors differ; the message says in what."""


def _compare(found: Instances, expected: Instances, selector: DetectionSelector, agreement: Agreement) -> None:
    distance = (found.pred_boxes.tensor[:, None] - expected.pred_boxes.tensor).abs().amax(dim=2)  # (F, E)
    score_distance = (found.scores[:, None] - expected.scores).abs()
    same = (found.pred_classes[:, None] == expected.pred_classes) & (distance <= BOX_TOLERANCE)
    same &= score_distance <= SCORE_TOLERANCE
    pairs, taken = [], set()
    for i, row in enumerate(same.tolist()):
        j = min((j for j, fits in enumerate(row) if fits and j not in taken), key=lambda j: abs(i - j), default=None)
        if j is not None:
            pairs.append((i, j))
            taken.add(j)
    left, right = ([pair[side] for pair in pairs] for side in (0, 1))
    surplus = found[[i for i in range(len(found)) if i not in left]]
    missing = expected[[j for j in range(len(expected)) if j not in taken]]
    agreement.borderline += _check_borderline(surplus, found, expected, selector, "only in the file:")
    agreement.borderline += _check_borderline(missing, expected, found, selector, "not in the file:")
    agreement.detections += len(pairs)
    if pairs:
        agreement.box = max(agreement.box, distance[left, right].max().item())
        for name in ("scores", *(name for name in QUALITY_FIELDS if found.has(name))):
            largest = (found.get(name)[left] - expected.get(name)[right]).abs().max().item()
            if not largest <= SCORE_TOLERANCE:  # NaN is no agreement
                raise _Differs(f"{name} by {largest:.1e}")
            agreement.score = max(agreement.score, largest)


def _check_borderline(
    single: Instances, side: Instances, other: Instances, selector: DetectionSelector, what: str
) -> int:
    """Checks that detections are on one side only because they all but equal a threshold.

    Args:
        single: these detections.
        side: all detections of their side.
        other: those of the other side.
        selector: what selects detections.
        what: how a message begins.

    Returns:
        Their number.
    """
    ends = [selector.score_thresh]
    if len(side) == selector.max_detections:
        ends.append(side.scores.min().item())
    for i in range(len(single)):
        score, label, box = single.scores[i], single.pred_classes[i], single.pred_boxes.tensor[i : i + 1]
        if min(abs(score.item() - end) for end in ends) <= SCORE_TOLERANCE:
            continue
        rivals = [x[x.pred_classes == label] for x in (side, other)]
        overlap, scores = (
            box_iou(box, torch.cat([x.pred_boxes.tensor for x in rivals]))[0],
            torch.cat([x.scores for x in rivals]),
        )
        at_threshold = (overlap - selector.nms_thresh).abs() <= SCORE_TOLERANCE
        tie = (overlap > selector.nms_thresh) & ((scores - score).abs() <= SCORE_TOLERANCE)
        tie[: len(rivals[0])] = False  # where it overlaps itself
        if not (at_threshold | tie).any():
            where = [round(x, 1) for x in box[0].tolist()]
            raise _Differs(f"{what} box {where} of class {label} with score {score:.4f}")
    return len(single)
