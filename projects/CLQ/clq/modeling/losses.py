"""Loss functions and what they compare boxes by: elementwise, in float32 or better, without reduction.

Binary cross entropy is torch's own and is called where it is used. The GIoU is written here, because torchvision's and
fvcore's index the overlapping pairs with a mask, which is a host-device synchronization.
"""

import torch
from detectron2.structures.boxes import Boxes, matched_pairwise_iou
from torch import Tensor
from torch.nn import functional as F

from clq.modeling.scoring import at_least_float32
from clq.modeling.structures import LogScore


def quality_focal_loss(score: LogScore, target: Tensor, beta: float = 2.0) -> Tensor:
    r"""Quality Focal Loss, :math:`|y - p|^\beta \, \mathrm{BCE}(p, y)` (GFL eq. 5; CLQ eq. 4: p is the joint score).

    The modulating factor is part of the loss, not a constant: gradients flow through it.

    Args:
        score: the score p, two tensors of the same shape.
        target: y in [0, 1], of that shape.
        beta: exponent of the modulating factor, at least 1.

    Returns:
        The loss of each element, in the shape of the score.
    """
    log_p, log_not_p = map(at_least_float32, score)
    bce = -(target * log_p + (1 - target) * log_not_p)
    return (target - log_p.exp()).abs().pow(beta) * bce


def focal_loss(score: LogScore, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    r"""Focal loss, :math:`-\alpha_t (1 - p_t)^\gamma \log p_t` (Lin et al. 2017, eq. 5), on a score in log space.

    fvcore's focal loss takes the logits of one sigmoid; this one takes any score.

    Args:
        score: the score p, two tensors of the same shape.
        target: 0 or 1, of that shape.
        alpha: weight of the positives; the negatives have the weight 1 - alpha.
        gamma: exponent of the modulating factor.

    Returns:
        The loss of each element, in the shape of the score.
    """
    log_p, log_not_p = map(at_least_float32, score)
    positive = alpha * (gamma * log_not_p).exp() * log_p
    negative = (1 - alpha) * (gamma * log_p).exp() * log_not_p
    return -(target * positive + (1 - target) * negative)


def varifocal_loss(score: LogScore, target: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    r"""Varifocal loss: positives weighted by their target y, negatives by :math:`\alpha p^\gamma` (VFNet eq. 2).

    Args:
        score: the score p, two tensors of the same shape.
        target: y in [0, 1], of that shape; 0 stands for a negative.
        alpha: factor of the weight of the negatives.
        gamma: exponent of the weight of the negatives.

    Returns:
        The loss of each element, in the shape of the score.
    """
    log_p, log_not_p = map(at_least_float32, score)
    positive = -target * (target * log_p + (1 - target) * log_not_p)
    return torch.where(target > 0, positive, -alpha * (gamma * log_p).exp() * log_not_p)


def distribution_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    r"""Distribution Focal Loss: cross entropy to the two bins beside the target, weighted by nearness (GFL eq. 6).

    Args:
        logits: (P, n + 1) logits of the bins 0 ... n.
        target: (P,) targets in [0, n], in units of bins.

    Returns:
        (P,) losses, one for each distribution.
    """
    log_prob = F.log_softmax(at_least_float32(logits), dim=-1)
    left = target.floor().clamp(max=logits.shape[-1] - 2)  # target n itself is the right neighbour of n - 1
    right_weight = target - left
    index = left.long().unsqueeze(-1)
    log_left, log_right = log_prob.gather(-1, index).squeeze(-1), log_prob.gather(-1, index + 1).squeeze(-1)
    return -((1 - right_weight) * log_left + right_weight * log_right)


def giou_loss(boxes: Tensor, target: Tensor) -> Tensor:
    r"""One minus the generalised IoU, :math:`1 - \frac{I}{U} + \frac{C - U}{C}` (Rezatofighi et al. 2019), C the hull.

    Args:
        boxes: (P, 4) boxes, XYXY.
        target: (P, 4) boxes, XYXY in the same units.

    Returns:
        (P,) losses, one for each pair, in [0, 2] for boxes with x1 <= x2 and y1 <= y2. U and C are clamped to at least
        1e-6, so the loss is finite for boxes without area.
    """
    boxes, target = map(at_least_float32, (boxes, target))
    overlap = (boxes[:, 2:].minimum(target[:, 2:]) - boxes[:, :2].maximum(target[:, :2])).clamp(min=0)
    intersection = _area(overlap)
    union = _area(boxes[:, 2:] - boxes[:, :2]) + _area(target[:, 2:] - target[:, :2]) - intersection
    union = union.clamp(min=1e-6)
    hull = _area(boxes[:, 2:].maximum(target[:, 2:]) - boxes[:, :2].minimum(target[:, :2])).clamp(min=1e-6)
    return 1 - intersection / union + (hull - union) / hull


def _area(size: Tensor) -> Tensor:
    """(P,) areas from widths and heights (P, 2)."""
    width, height = size.unbind(dim=1)  # the gradient of prod() is a host-device synchronization
    return width * height


def matched_iou(boxes: Tensor, target: Tensor) -> Tensor:
    """(P,) IoU of each pair of XYXY boxes (P, 4), float32, without gradient."""
    return matched_pairwise_iou(Boxes(boxes.detach()), Boxes(target.detach()))


def centerness(anchors: Tensor, gt_boxes: Tensor) -> Tensor:
    r"""Centerness of the anchors' centres, :math:`\sqrt{\frac{\min(l, r) \min(t, b)}{\max(l, r) \max(t, b)}}` (FCOS).

    Args:
        anchors: (P, 4) anchors, XYXY.
        gt_boxes: (P, 4) ground-truth boxes, XYXY in the same units.

    Returns:
        (P,) in [0, 1]. It is 0 for a centre that does not lie inside the ground truth, as SimOTA and the assignment by
        IoU may match, and so for every centre where the ground truth has no area.
    """
    center = (anchors[:, :2] + anchors[:, 2:]) * 0.5
    near, far = center - gt_boxes[:, :2], gt_boxes[:, 2:] - center
    longer = near.maximum(far).clamp(min=1e-6)  # 0 where the ground truth is a point and the centre lies on it
    return (near.minimum(far) / longer).clamp(min=0).prod(dim=-1).sqrt()
