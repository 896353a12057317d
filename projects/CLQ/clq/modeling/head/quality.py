"""Localisation quality: what predicts it, what it learns of a box, and where it enters the score."""

import math
from functools import partial

import torch
from detectron2.layers import Conv2d
from detectron2.structures.boxes import Boxes, matched_pairwise_iou
from torch import Tensor, nn

from clq.modeling.head.towers import small_conv


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


class ConvQualityBranch(Conv2d):
    """Quality logit from one of the two towers, by one 3x3 convolution.

    Args:
        coder, in_channels: unused; see the other branches.
        channels: number of channels of the tower.
        tower: which tower it reads, ``cls`` (behind the feature alignment, where there is one) or ``reg``.

    Raises:
        ValueError: there is no such tower.
    """

    def __init__(self, coder, in_channels: int, channels: int, *, tower: str):
        if tower not in ("cls", "reg"):
            raise ValueError(f"the quality branch reads the tower cls or reg, not {tower}")
        super().__init__(channels, 1, 3, padding=1)
        self.tower = tower

    def forward(self, feature: Tensor, cls: Tensor, reg: Tensor, box_pred: Tensor) -> Tensor:
        """(N, 1, H, W) logits from the towers' outputs (N, channels, H, W)."""
        return super().forward(cls if self.tower == "cls" else reg)


class DGQPBranch(nn.Sequential):
    """GFLv2's DGQP (Li et al. 2021, section 3.2): quality logit from the shape of the box's own four distributions.

    A sharp distribution says that its side is certain. Each side's k largest probabilities and their mean go through
    two 1x1 convolutions.

    Args:
        coder: with ``probabilities``, as :class:`~clq.modeling.box_coding.DistributionCoder`.
        in_channels, channels: of the tower, which this branch does without.
        topk: k.
        hidden: channels between the two convolutions.

    Raises:
        ValueError: the coder predicts no distributions, or distributions of fewer than k bins.
    """

    def __init__(self, coder, in_channels: int, channels: int, *, topk: int = 4, hidden: int = 64):
        if not hasattr(coder, "probabilities"):
            raise ValueError("the quality comes from distributions, which box coding distribution alone has")
        if coder.reg_max + 1 < topk:
            raise ValueError(f"it reads the {topk} largest of {coder.reg_max + 1} bins; raise BOX.REG_MAX")
        super().__init__(Conv2d(4 * (topk + 1), hidden, 1), nn.ReLU(), Conv2d(hidden, 1, 1))
        self.coder = coder
        self.topk = topk

    def forward(self, feature: Tensor, cls: Tensor, reg: Tensor, box_pred: Tensor) -> Tensor:
        """(N, 1, H, W) logits from the box prediction (N, 4 (n + 1), H, W), with gradient into it."""
        largest = self.coder.probabilities(box_pred.permute(0, 2, 3, 1)).topk(self.topk, dim=-1).values
        statistics = torch.cat((largest, largest.mean(dim=-1, keepdim=True)), dim=-1)  # (N, H, W, 4, k + 1)
        return super().forward(statistics.flatten(3).permute(0, 3, 1, 2))


class ProbabilityMapBranch(nn.Sequential):
    """TOOD's spatial probability map M (Feng et al. 2021, eq. 5), from all features of the interactive towers.

    Args:
        coder: unused.
        in_channels, channels: of the towers' input and output.
        prior_prob: probability at initialisation.
    """

    def __init__(self, coder, in_channels: int, channels: int, *, prior_prob: float = 0.01):
        hidden = max(channels // 4, 1)
        super().__init__(small_conv(in_channels, hidden, 1, 0.01), nn.ReLU(), small_conv(hidden, 1, 3, 0.01))
        nn.init.constant_(self[2].bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(self, feature: Tensor, cls: Tensor, reg: Tensor, box_pred: Tensor) -> Tensor:
        """(N, 1, H, W) logits from the towers' input (N, in_channels, H, W)."""
        return super().forward(feature)


class Quality:
    """A kind of quality: these attributes, as they are unless it says otherwise.

    Attributes:
        joint, alpha, cls_alpha: see :class:`~clq.modeling.scoring.ScoreRule`.
        branch: makes its module in the head from the box coder and the channels of the towers' input and output; the
            module goes from the towers' input, the outputs of the class and the regression tower, (N, ., H, W) each,
            and the box prediction to the logits (N, 1, H, W).
        target: what the branch learns by binary cross entropy, or None where the score's loss alone teaches it.
    """

    joint = True
    alpha = 1.0
    cls_alpha = 1.0
    branch = partial(ConvQualityBranch, tower="reg")
    target = None


class CenternessQuality(Quality):
    """ATSS's branch: learns :func:`centerness`, multiplies the class score at test only."""

    joint = False

    def target(self, pred_boxes: Tensor, gt_boxes: Tensor, anchors: Tensor) -> Tensor:
        """(P,) centerness of each positive; all arguments (P, 4) XYXY pixels."""
        return centerness(anchors, gt_boxes)


class IoUQuality(Quality):
    """CLQ's LQE branch: learns a box's IoU (eq. 1) and enters the score as IoU^alpha, train and test (eq. 2, 3).

    Args:
        alpha: exponent of the quality, > 0.
        tower: which tower the branch reads, ``cls`` as in the authors' code, or ``reg`` as the paper's text says.

    Raises:
        ValueError: alpha is not positive.
    """

    def __init__(self, alpha: float = 0.3, tower: str = "cls"):
        if not 0 < alpha < math.inf:
            raise ValueError(f"the exponent alpha of the IoU branch must be positive and finite, got {alpha}")
        self.alpha = alpha
        self.branch = partial(ConvQualityBranch, tower=tower)

    def target(self, pred_boxes: Tensor, gt_boxes: Tensor, anchors: Tensor) -> Tensor:
        """(P,) IoU of each positive's decoded box with its ground truth; all arguments (P, 4) XYXY pixels."""
        return box_iou_matched(pred_boxes, gt_boxes)


class DGQPQuality(Quality):
    """GFLv2's branch: multiplies the class score, train and test, and learns from that score's loss alone."""

    branch = DGQPBranch


class TOODQuality(Quality):
    """TOOD's branch: the score is the geometric mean of class score and map, which learns from that score's loss alone.

    Args:
        prior_prob: of the map at initialisation.
    """

    alpha = 0.5
    cls_alpha = 0.5

    def __init__(self, prior_prob: float = 0.01):
        self.branch = partial(ProbabilityMapBranch, prior_prob=prior_prob)
