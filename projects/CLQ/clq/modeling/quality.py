"""Localisation quality: what predicts it, what it learns of a box, and where it enters the score.

A kind of quality is a class with these attributes:

* ``joint``, ``alpha``: see :class:`~clq.modeling.scoring.ScoreRule`;
* ``branch``: class of its module in the head, made from the box coder and the tower's channels;
* ``target``: what the branch learns by binary cross entropy, or None where the score's loss alone teaches it.
"""

import torch
from detectron2.layers import Conv2d
from detectron2.structures.boxes import Boxes, matched_pairwise_iou
from torch import Tensor, nn


def box_iou_matched(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """(P,) IoU of each pair of XYXY boxes (P, 4), float32, without gradient."""
    return matched_pairwise_iou(Boxes(boxes1.detach()), Boxes(boxes2.detach()))


def centerness(anchors: Tensor, gt_boxes: Tensor) -> Tensor:
    r"""Centerness of the anchors' centres, :math:`\sqrt{\frac{\min(l, r) \min(t, b)}{\max(l, r) \max(t, b)}}` (FCOS).

    Args:
        anchors: (P, 4) XYXY, the centres inside the ground truths.
        gt_boxes: (P, 4) XYXY of the same units.

    Returns:
        (P,) in (0, 1].
    """
    center = (anchors[:, :2] + anchors[:, 2:]) * 0.5
    near, far = center - gt_boxes[:, :2], gt_boxes[:, 2:] - center
    return (near.minimum(far) / near.maximum(far)).prod(dim=-1).sqrt()


class TowerQuality(Conv2d):
    """Quality logit from the regression tower, by one 3x3 convolution.

    Args:
        coder: unused; see :class:`DistributionQuality`.
        channels: of the tower.
    """

    def __init__(self, coder, channels: int):
        super().__init__(channels, 1, 3, padding=1)

    def forward(self, tower: Tensor, box_pred: Tensor) -> Tensor:
        """(N, 1, H, W) logits from the tower's output (N, channels, H, W)."""
        return super().forward(tower)


class DistributionQuality(nn.Sequential):
    """GFLv2's DGQP (Li et al. 2021, section 3.2): quality logit from the shape of the box's own four distributions.

    A sharp distribution says that its side is certain. Each side's k largest probabilities and their mean go through
    two 1x1 convolutions.

    Args:
        coder: with ``probabilities``, as :class:`~clq.modeling.box_coding.DistributionCoder`.
        channels: of the tower, which this branch does without.
        topk: k.
        hidden: channels between the two convolutions.

    Raises:
        ValueError: the coder predicts no distributions, or distributions of fewer than k bins.
    """

    def __init__(self, coder, channels: int, *, topk: int = 4, hidden: int = 64):
        if not hasattr(coder, "probabilities"):
            raise ValueError("the quality comes from distributions, which box coding distribution alone has")
        if coder.reg_max + 1 < topk:
            raise ValueError(f"it reads the {topk} largest of {coder.reg_max + 1} bins; raise BOX.REG_MAX")
        super().__init__(Conv2d(4 * (topk + 1), hidden, 1), nn.ReLU(), Conv2d(hidden, 1, 1))
        self.coder = coder
        self.topk = topk

    def forward(self, tower: Tensor, box_pred: Tensor) -> Tensor:
        """(N, 1, H, W) logits from the box prediction (N, 4 (n + 1), H, W), with gradient into it."""
        largest = self.coder.probabilities(box_pred.permute(0, 2, 3, 1)).topk(self.topk, dim=-1).values
        statistics = torch.cat((largest, largest.mean(dim=-1, keepdim=True)), dim=-1)  # (N, H, W, 4, k + 1)
        return super().forward(statistics.flatten(3).permute(0, 3, 1, 2))


class Centerness:
    """ATSS's branch: learns :func:`centerness`, multiplies the class score at test only."""

    joint = False
    alpha = 1.0
    branch = TowerQuality

    def target(self, pred_boxes: Tensor, gt_boxes: Tensor, anchors: Tensor) -> Tensor:
        """(P,) centerness of each positive; all arguments (P, 4) XYXY pixels."""
        return centerness(anchors, gt_boxes)


class PredictedIoU:
    """CLQ's LQE branch: learns a box's IoU (eq. 1) and enters the score as IoU^alpha, train and test (eq. 2, 3).

    Args:
        alpha: exponent of the quality, > 0.
        of: whose IoU: ``pred_box``, the decoded box (no gradient), or ``anchor``.

    Raises:
        ValueError: unknown ``of``, or alpha not positive.
    """

    joint = True
    branch = TowerQuality

    def __init__(self, alpha: float = 0.3, of: str = "pred_box"):
        if of not in ("pred_box", "anchor"):
            raise ValueError(f"the target of the IoU branch is pred_box or anchor, not {of}")
        if not alpha > 0:
            raise ValueError(f"the exponent alpha of the IoU branch must be positive, got {alpha}")
        self.alpha = alpha
        self.of = of

    def target(self, pred_boxes: Tensor, gt_boxes: Tensor, anchors: Tensor) -> Tensor:
        """(P,) IoU of each positive with its ground truth; all arguments (P, 4) XYXY pixels."""
        return box_iou_matched(pred_boxes if self.of == "pred_box" else anchors, gt_boxes)


class DistributionGuided:
    """GFLv2's branch: multiplies the class score, train and test, and learns from that score's loss alone."""

    joint = True
    alpha = 1.0
    branch = DistributionQuality
    target = None
