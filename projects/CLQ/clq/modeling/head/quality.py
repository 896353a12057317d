"""Localization quality: the branches that predict it, what they learn, and how it enters the score."""

import math
from abc import ABC, abstractmethod
from typing import Literal, cast

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn

from clq.modeling.box_coding import BoxCoder, DistributionCoder
from clq.modeling.criterion import QualityTarget, centerness_target, iou_target
from clq.modeling.head.towers import small_conv

# What a branch reads of a location: the towers' input, the output of the class tower, the output of the regression
# tower, or the box prediction, each (N, channels, H, W).
Source = Literal["feature", "cls", "reg", "box_pred"]


class QualityBranch(nn.Module, ABC):
    """The interface of quality branches: a module from one map of the head to quality logits.

    Attributes:
        reads: name of the map that it reads, see :data:`Source`.
    """

    reads: Source

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Quality logits (N, 1, H, W) from the map (N, channels, H, W) that ``reads`` names."""


class ConvQualityBranch(Conv2d, QualityBranch):
    """Quality logits from the output of one of the towers, by one 3x3 convolution.

    Args:
        channels: number of channels of the tower.
        tower: name of the tower, ``cls`` (which follows the feature alignment, where there is one) or ``reg``.

    Raises:
        ValueError: there is no such tower.
    """

    def __init__(self, channels: int, tower: Literal["cls", "reg"]):
        if tower not in ("cls", "reg"):
            raise ValueError(f"the quality branch reads the tower cls or reg, not {tower}")
        super().__init__(channels, 1, 3, padding=1)
        self.reads = tower


class DGQPBranch(nn.Sequential, QualityBranch):
    """GFLv2's DGQP (Li et al. 2021, section 3.2): quality logits from the shape of the box's four distributions.

    A sharp distribution stands for a side that is certain. The k largest probabilities of each side and their mean go
    through two 1x1 convolutions.

    Args:
        coder: box coder that predicts distributions.
        topk: number k of probabilities.
        hidden: number of channels between the two convolutions.

    Raises:
        ValueError: the coder predicts no distributions, or distributions of fewer than k bins.
    """

    reads = "box_pred"

    def __init__(self, coder: BoxCoder, topk: int = 4, hidden: int = 64):
        if not isinstance(coder, DistributionCoder):
            raise ValueError("the quality comes from distributions, which only box coding distribution has")
        if coder.reg_max + 1 < topk:
            raise ValueError(f"it reads the {topk} largest of {coder.reg_max + 1} bins; raise BOX.REG_MAX")
        super().__init__(Conv2d(4 * (topk + 1), hidden, 1), nn.ReLU(), Conv2d(hidden, 1, 1))
        self.coder = coder
        self.topk = topk

    def forward(self, x: Tensor) -> Tensor:
        """Quality logits (N, 1, H, W) from box predictions (N, 4 (n + 1), H, W), with gradient into these."""
        largest = self.coder.probabilities(x.permute(0, 2, 3, 1)).topk(self.topk, dim=-1).values
        statistics = torch.cat((largest, largest.mean(dim=-1, keepdim=True)), dim=-1)  # (N, H, W, 4, k + 1)
        return super().forward(statistics.flatten(3).permute(0, 3, 1, 2))


class ProbabilityMapBranch(nn.Sequential, QualityBranch):
    """TOOD's spatial probability map M (Feng et al. 2021, eq. 5), from all layers of the interactive tower.

    Args:
        in_channels: number of channels of the towers' input, which holds these layers.
        channels: number of channels of the towers' output; a quarter of it is the width of the branch.
        prior_prob: probability at initialization.
    """

    reads = "feature"

    def __init__(self, in_channels: int, channels: int, prior_prob: float = 0.01):
        hidden = max(channels // 4, 1)
        last = small_conv(hidden, 1, 3, std=0.01)
        nn.init.constant_(cast(Tensor, last.bias), -math.log((1 - prior_prob) / prior_prob))
        super().__init__(small_conv(in_channels, hidden, 1, std=0.01), nn.ReLU(), last)


class Quality(ABC):
    """A kind of localization quality: its branch, what the branch learns, and how it enters the score.

    Attributes:
        joint: whether it takes part in training, see :class:`~clq.modeling.scoring.ScoreRule`.
        alpha: exponent of the quality in the score.
        cls_alpha: exponent of the class score in the score.
        target: function for what the branch learns by binary cross entropy, see
            :data:`~clq.modeling.criterion.QualityTarget`; None where the loss of the score alone teaches it.
    """

    joint: bool = True
    alpha: float = 1.0
    cls_alpha: float = 1.0
    target: QualityTarget | None = None

    @abstractmethod
    def branch(self, coder: BoxCoder, in_channels: int, channels: int) -> QualityBranch:
        """Makes the module of the head.

        Args:
            coder: box coder of the head.
            in_channels: number of channels of the towers' input.
            channels: number of channels of the towers' outputs.
        """


class CenternessQuality(Quality):
    """ATSS's quality: the branch learns the centerness and multiplies the class score at test time only."""

    joint = False
    target = staticmethod(centerness_target)

    def branch(self, coder: BoxCoder, in_channels: int, channels: int) -> QualityBranch:
        """A convolution on the regression tower, see :meth:`Quality.branch`."""
        return ConvQualityBranch(channels, "reg")


class IoUQuality(Quality):
    """CLQ's LQE: the branch learns the box's IoU (eq. 1) and enters the score as IoU^alpha (eq. 2 and 3).

    Args:
        alpha: exponent of the quality, above 0.
        tower: name of the tower that the branch reads, ``cls`` as in the authors' code or ``reg`` as in the paper's
            text.

    Raises:
        ValueError: alpha is not positive and finite.
    """

    target = staticmethod(iou_target)

    def __init__(self, alpha: float = 0.3, tower: Literal["cls", "reg"] = "cls"):
        if not 0 < alpha < math.inf:
            raise ValueError(f"the exponent alpha of the IoU branch must be positive and finite, not {alpha}")
        self.alpha = alpha
        self.tower = tower

    def branch(self, coder: BoxCoder, in_channels: int, channels: int) -> QualityBranch:
        """A convolution on the chosen tower, see :meth:`Quality.branch`."""
        return ConvQualityBranch(channels, self.tower)


class DGQPQuality(Quality):
    """GFLv2's quality: it multiplies the class score, and its branch learns from the loss of that score alone."""

    def branch(self, coder: BoxCoder, in_channels: int, channels: int) -> QualityBranch:
        """A branch on the box's distributions, see :meth:`Quality.branch`."""
        return DGQPBranch(coder)


class TOODQuality(Quality):
    """TOOD's quality: the score is the geometric mean of the class score and a map that this score's loss trains.

    Args:
        prior_prob: probability of the map at initialization.
    """

    alpha = 0.5
    cls_alpha = 0.5

    def __init__(self, prior_prob: float = 0.01):
        self.prior_prob = prior_prob

    def branch(self, coder: BoxCoder, in_channels: int, channels: int) -> QualityBranch:
        """A branch on all layers of the interactive tower, see :meth:`Quality.branch`."""
        return ProbabilityMapBranch(in_channels, channels, self.prior_prob)
