"""SimOTA (YOLOX, Ge et al. 2021, section 2.1): the cheapest locations of each ground truth, their number by its IoUs.

Legend: N images, R locations over all levels, K classes, M ground truths of one image.
"""

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from clq.modeling.assign.base import Assignment, AssignmentInputs

_OUTSIDE = 1e5  # the cost of a location that is not both in the ground truth and near its centre
_LOWEST_LOG = -100.0  # torch's binary cross entropy clamps its logarithms here, and YOLOX uses it


def match_simota(
    scores: Tensor,
    boxes: Tensor,
    centers: Tensor,
    strides: Tensor,
    valid: Tensor,
    gt_boxes: Tensor,
    gt_classes: Tensor,
    *,
    radius: float = 2.5,
    candidates: int = 10,
    iou_weight: float = 3.0,
) -> Tensor:
    r"""Matches the locations of one image to its ground truths by the cost of what is predicted there.

    Locations inside any ground truth, or within ``radius`` strides of the centre of any, take part. The cost of a pair
    is :math:`\mathrm{BCE}(\sqrt{p}) - \lambda \log u`, plus 100,000 unless the location lies inside this ground truth
    and near its centre; p are the K scores of the location, u is the IoU of its box, :math:`\lambda` is the weight. A
    ground truth takes the k cheapest locations, where k is the sum of its ``candidates`` largest IoUs, rounded down,
    and at least 1. A location that several ground truths take goes to the one of least cost.

    Args:
        scores: (R, K) predicted probabilities of the trained score.
        boxes: (R, 4) predicted boxes, XYXY in pixels.
        centers: (R, 2) centres xy of the anchors, in pixels.
        strides: (R,) strides of the locations, in pixels.
        valid: (R,) bool, False on the padding of the batch, which is never matched.
        gt_boxes: (M, 4) ground-truth boxes, XYXY in pixels; M may be 0.
        gt_classes: (M,) int64, their classes.
        radius: half the side of the square around a centre, in strides.
        candidates: number of IoUs that are summed, and upper bound of k.
        iou_weight: weight of the IoU's cost.

    Returns:
        ``matched_idxs`` (R,) int64, the index of the matched ground truth or -1.
    """
    num_locations, num_gt = len(scores), len(gt_boxes)
    if not num_gt or not num_locations:
        return torch.full((num_locations,), -1, device=scores.device)
    gt_boxes = gt_boxes.float()
    near_side, far_side = centers - gt_boxes[:, None, :2], gt_boxes[:, None, 2:] - centers  # (M, R, 2) each
    inside = torch.minimum(near_side, far_side).amin(dim=-1) > 0  # (M, R)
    near = (near_side - far_side).abs().amax(dim=-1) / 2 < radius * strides  # half the difference: from the middle
    takes_part = (inside | near).any(dim=0) & valid  # (R,)

    ious = pairwise_iou(Boxes(gt_boxes), Boxes(boxes.float())) * takes_part
    cost = _class_cost(scores.float(), gt_classes) - iou_weight * (ious + 1e-8).log() + _OUTSIDE * ~(inside & near)
    cost = torch.where(takes_part, cost, torch.inf)

    candidates = min(candidates, num_locations)
    dynamic_k = ious.topk(candidates, dim=1).values.sum(dim=1).int().clamp(min=1)  # (M,)
    cheapest, index = cost.topk(candidates, dim=1, largest=False)
    takes = (torch.arange(candidates, device=cost.device) < dynamic_k[:, None]) & cheapest.isfinite()
    taken = torch.zeros_like(inside).scatter_(1, index, takes)
    # As in YOLOX, all ground truths compete for a location that several take, not those alone that take it.
    claims = taken.sum(dim=0)
    gt = torch.where(claims > 1, cost.argmin(dim=0), taken.long().argmax(dim=0))
    return torch.where(claims > 0, gt, -1)


def _class_cost(scores: Tensor, gt_classes: Tensor) -> Tensor:
    """(M, R) binary cross entropy of the square roots of scores (R, K) with each class as one-hot target, summed."""
    log_p = (scores.log() / 2).clamp(min=_LOWEST_LOG)
    log_not_p = torch.log1p(-scores.sqrt()).clamp(min=_LOWEST_LOG)
    return -(log_not_p.sum(dim=1) + (log_p - log_not_p).T[gt_classes])


class SimOTAAssigner:
    """The assigner of YOLOX: :func:`match_simota` for a batch of images.

    Args:
        radius: half the side of the square around a centre, in strides.
        candidates: number of IoUs that are summed, and upper bound of the locations that a ground truth takes.
        iou_weight: weight of the IoU's cost.
    """

    def __init__(self, radius: float = 2.5, candidates: int = 10, iou_weight: float = 3.0):
        self.radius = radius
        self.candidates = candidates
        self.iou_weight = iou_weight

    @torch.no_grad()
    def __call__(self, inputs: AssignmentInputs) -> Assignment:
        """Assigns a batch by its predictions. A ground truth takes at most ``candidates`` locations."""
        images = zip(
            inputs.log_scores.exp(), inputs.boxes, inputs.valid, inputs.gt_boxes, inputs.gt_classes, strict=True
        )
        matched_idxs = [
            match_simota(
                scores,
                boxes,
                inputs.centers,
                inputs.location_strides,
                valid,
                gt_boxes,
                gt_classes,
                radius=self.radius,
                candidates=self.candidates,
                iou_weight=self.iou_weight,
            )
            for scores, boxes, valid, gt_boxes, gt_classes in images
        ]
        return Assignment(torch.stack(matched_idxs), sum(map(len, inputs.gt_boxes)) * self.candidates)
