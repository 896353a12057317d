"""Task-aligned assignment (TOOD, Feng et al. 2021): positives are where class score and box are both good.

Legend: R locations over all levels, K classes, M ground truths of one image, k = topk.
"""

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from clq.modeling.assign.base import Assignment, AssignmentInputs

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

    The alignment metric of a location with a ground truth is :math:`s^\alpha u^\beta` (eq. 4), where s is the score of
    the ground truth's class and u is the IoU of the predicted box. Each ground truth takes, of the k locations with the
    largest metric, those whose centre lies inside it by more than 0.01 pixels on every side. A location that two ground
    truths take goes to the one that its box overlaps more, or to the lower index where the IoUs are equal. The metrics
    are then scaled so that the best metric of a ground truth is the largest IoU among its locations (section 3.3).

    Args:
        scores: (R, K) predicted probabilities.
        boxes: (R, 4) predicted boxes, XYXY in pixels.
        centers: (R, 2) centres xy of the anchors, in pixels.
        gt_boxes: (M, 4) ground-truth boxes, XYXY in pixels; M may be 0.
        gt_classes: (M,) int64, their classes.
        topk: number k of locations that a ground truth considers.
        alpha: exponent of the score.
        beta: exponent of the IoU.

    Returns:
        ``matched_idxs`` (R,) int64, the index of the matched ground truth or -1, and ``alignment_metric`` (R,) float32
        in [0, 1], the scaled metric, or 0 where there is no match.
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
        """(R,) largest of the values (R,) over all locations of the location's ground truth; 0 where unmatched."""
        return values.new_zeros(num_gt).scatter_reduce_(0, gt, values, "amax")[gt]

    metric = torch.where(matched, metric.gather(0, gt[None]).squeeze(0), 0.0)
    metric = metric / largest(metric) * largest(overlap.clamp(min=0))
    return torch.where(matched, gt, -1), torch.where(matched, metric, 0.0)


class TaskAlignedAssigner:
    """The assigner of TOOD: :func:`match_task_aligned` for a batch of images.

    Args:
        topk: number k of locations that a ground truth considers.
        alpha: exponent of the score.
        beta: exponent of the IoU.
    """

    def __init__(self, topk: int = 13, alpha: float = 1.0, beta: float = 6.0):
        self.topk = topk
        self.alpha = alpha
        self.beta = beta

    @torch.no_grad()
    def __call__(self, inputs: AssignmentInputs) -> Assignment:
        """Assigns a batch by its predictions. A ground truth takes at most k locations."""
        scores = inputs.log_scores.exp() * inputs.valid.unsqueeze(-1)  # the padding of the batch is never matched
        images = zip(scores, inputs.boxes, inputs.gt_boxes, inputs.gt_classes, strict=True)
        matches = [
            match_task_aligned(
                image_scores,
                boxes,
                inputs.centers,
                gt_boxes,
                gt_classes,
                topk=self.topk,
                alpha=self.alpha,
                beta=self.beta,
            )
            for image_scores, boxes, gt_boxes, gt_classes in images
        ]
        matched_idxs, metric = map(torch.stack, zip(*matches, strict=True))
        return Assignment(matched_idxs, sum(map(len, inputs.gt_boxes)) * self.topk, alignment_metric=metric)
