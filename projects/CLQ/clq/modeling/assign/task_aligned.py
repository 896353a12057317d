"""Task-aligned assignment (Feng et al. 2021, TOOD): positives are where class score and box are good together.

Legend: R locations over all levels, K classes, M ground truths of one image, k = topk.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from clq.modeling.criterion import DetectionLoss

_INSIDE_MARGIN = 0.01  # pixels


def match_task_aligned(
    scores: Tensor,
    boxes: Tensor,
    centers: Tensor,
    gt_boxes: Tensor,
    gt_classes: Tensor,
    *,
    topk: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
) -> tuple[Tensor, Tensor]:
    r"""Matches the locations of one image to its ground truths by what is predicted there.

    The alignment of a location with a ground truth is :math:`s^\alpha u^\beta` (eq. 4), from the score s of its class
    and the IoU u of the predicted box. Each ground truth takes the k locations that align best, of these those whose
    centre lies inside it by more than 0.01 pixels on every side. A location taken twice goes to the ground truth that
    its box overlaps more (ties: the lower index). Alignments are then scaled so that a ground truth's best is the
    largest IoU among its locations (section 3.3).

    Args:
        scores: (R, K) predicted probabilities.
        boxes: (R, 4) predicted, XYXY pixels.
        centers: (R, 2) xy of the anchors, pixels.
        gt_boxes: (M, 4) XYXY pixels; M may be 0.
        gt_classes: (M,) int64.
        topk, alpha, beta: k and the two exponents.

    Returns:
        ``matched_idxs`` (R,) int64, the matched ground truth or -1, and ``alignment`` (R,) float32 in [0, 1], scaled,
        0 where there is none.
    """
    num_locations, num_gt = len(scores), len(gt_boxes)
    if not num_gt or not num_locations:
        return torch.full((num_locations,), -1, device=scores.device), boxes.new_zeros(num_locations).float()
    ious = pairwise_iou(Boxes(gt_boxes.float()), Boxes(boxes.detach().float()))  # (M, R)
    metric = scores.detach().float().T[gt_classes] ** alpha * ious**beta
    best, candidates = metric.topk(min(topk, num_locations), dim=1)  # (M, k)

    near, far = centers[candidates] - gt_boxes[:, None, :2], gt_boxes[:, None, 2:] - centers[candidates]
    inside = torch.cat((near, far), dim=-1).amin(dim=-1) > _INSIDE_MARGIN
    taken = torch.zeros_like(metric, dtype=torch.bool).scatter_(1, candidates, inside & (best > 0))
    overlap, gt = torch.where(taken, ious, -1.0).max(dim=0)  # (R,); the first of equals
    matched = overlap >= 0

    def largest(values: Tensor) -> Tensor:
        """Of each location's ground truth, over all locations that it has; values (R,), 0 where unmatched."""
        return values.new_zeros(num_gt).scatter_reduce_(0, gt, values, "amax")[gt]

    metric = torch.where(matched, metric.gather(0, gt[None]).squeeze(0), 0.0)
    alignment = metric / largest(metric) * largest(overlap.clamp(min=0))
    return torch.where(matched, gt, -1), torch.where(matched, alignment, 0.0)


class TaskAlignedMatcher:
    """:func:`match_task_aligned` for a batch of images.

    Args:
        topk, alpha, beta: see there.
    """

    def __init__(self, topk: int = 13, alpha: float = 1.0, beta: float = 6.0):
        self.topk = topk
        self.alpha = alpha
        self.beta = beta

    def max_positives(self, num_gts: int, num_levels: int) -> int:
        """As :meth:`ATSSMatcher.max_positives`."""
        return num_gts * self.topk

    @torch.no_grad()
    def __call__(
        self,
        log_scores: Tensor,
        boxes: Tensor,
        anchors: Tensor,
        valid: Tensor,
        gt_boxes: Sequence[Tensor],
        gt_classes: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Matches every image of a batch.

        Args:
            log_scores: (N, R, K) logarithms of the predicted probabilities.
            boxes: (N, R, 4) predicted, XYXY pixels.
            anchors: (R, 4) XYXY pixels.
            valid: (N, R) bool, False on the padding of the batch, which is never matched.
            gt_boxes, gt_classes: per image, (M, 4) XYXY pixels and (M,).

        Returns:
            ``matched_idxs`` (N, R) int64 and ``alignment`` (N, R) float32.
        """
        scores = log_scores.exp() * valid.unsqueeze(-1)
        centers = (anchors[:, :2] + anchors[:, 2:]) / 2
        images = zip(scores, boxes, gt_boxes, gt_classes, strict=True)
        settings = {"topk": self.topk, "alpha": self.alpha, "beta": self.beta}
        matches = [match_task_aligned(s, b, centers, gt, k, **settings) for s, b, gt, k in images]
        matched_idxs, alignment = zip(*matches, strict=True)
        return torch.stack(matched_idxs), torch.stack(alignment)


class TaskAlignedPhase(NamedTuple):
    """TOOD's second part of a training, after one with ATSS's matching and losses.

    Attributes:
        start: its first iteration.
        matcher: from what is predicted to matched indices and alignments.
        loss: from predictions and targets with these alignments to the dict of losses.
    """

    start: int
    matcher: TaskAlignedMatcher
    loss: DetectionLoss
