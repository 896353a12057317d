"""Box coders: what the regression branch predicts, and how boxes are decoded from it.

A coder decodes any layout: predictions (..., C), anchors (..., 4) and strides (...) broadcast against each other. Boxes
are XYXY. They are in pixels when anchors and strides are. With the anchor of :func:`unit_anchor` and stride 1, the same
call gives boxes in stride units relative to their location, which is what the feature alignment reads.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from clq.modeling.losses import distribution_focal_loss
from clq.modeling.scoring import at_least_float32

# Width and height change by at most this factor, in both directions (R-CNN's max ratio; MMDetection clamps both ends).
_MAX_LOG_RATIO = math.log(1000.0 / 16.0)


def unit_anchor(anchor_scale: float) -> Tensor:
    """(4,) square anchor in stride units, centred on its location, from its side in strides."""
    half = anchor_scale / 2
    return torch.tensor([-half, -half, half, half])


class BoxCoder(ABC):
    """The interface of box coders.

    Attributes:
        num_channels: number C of channels of the box prediction.
    """

    num_channels: int

    def activate(self, raw: Tensor) -> Tensor:
        """Turns the output of the head's convolution into the prediction, before the scale of the level."""
        return raw

    @abstractmethod
    def decode(self, pred: Tensor, anchors: Tensor, strides: Tensor | float) -> Tensor:
        """Decodes boxes, in float32 or better.

        Args:
            pred: (..., C) predictions.
            anchors: (..., 4) anchors, XYXY.
            strides: (...) strides in the units of the anchors, or one for all.

        Returns:
            (..., 4) boxes, XYXY in the units of the anchors.
        """

    def auxiliary_loss(self, pred: Tensor, boxes: Tensor, anchors: Tensor, strides: Tensor) -> dict[str, Tensor]:
        """Losses of the coding itself, beside the loss of the decoded box; none by default.

        Args:
            pred: (P, C) predictions of the positives.
            boxes: (P, 4) ground-truth boxes, XYXY in pixels.
            anchors: (P, 4) anchors, XYXY in pixels.
            strides: (P,) strides in pixels.

        Returns:
            Losses (P,) by name.
        """
        return {}


class DeltaCoder(BoxCoder):
    """R-CNN's deltas: the shift of the centre over the anchor's size and the log ratio of the sizes, each weighted.

    Unlike Detectron2's Box2BoxTransform, it clamps shrinking like growing, and it decodes any leading shape.

    Args:
        weights: weights of (dx, dy, dw, dh); the inverse of the standard deviations in MMDetection's terms.
    """

    num_channels = 4

    def __init__(self, weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)):
        self.weights = tuple(weights)

    def decode(self, pred: Tensor, anchors: Tensor, strides: Tensor | float) -> Tensor:
        """Decodes deltas (..., 4); the strides are not used. See :meth:`BoxCoder.decode`."""
        dx, dy, dw, dh = at_least_float32(pred).unbind(-1)
        wx, wy, ww, wh = self.weights
        center, size = _center_size(anchors)
        center = center + torch.stack((dx / wx, dy / wy), -1) * size
        log_ratio = torch.stack((dw / ww, dh / wh), -1).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
        half = 0.5 * size * log_ratio.exp()
        return torch.cat((center - half, center + half), -1)


class LogDistanceCoder(BoxCoder):
    """VFNet's distances: each side lies exp(x) anchor sizes from the anchor's centre, so every prediction is a box."""

    num_channels = 4

    def decode(self, pred: Tensor, anchors: Tensor, strides: Tensor | float) -> Tensor:
        """Decodes log distances ltrb (..., 4); the strides are not used. See :meth:`BoxCoder.decode`."""
        center, size = _center_size(anchors)
        left_top, right_bottom = at_least_float32(pred).clamp(max=_MAX_LOG_RATIO).exp().split(2, dim=-1)
        return torch.cat((center - left_top * size, center + right_bottom * size), -1)


class LinearDistanceCoder(BoxCoder):
    """TOOD's distances: each side lies x strides from the anchor's centre; a refinement may make x negative."""

    num_channels = 4

    def activate(self, raw: Tensor) -> Tensor:
        """Positive distances in strides, up to 62.5 times the size of an anchor of 8 strides."""
        return at_least_float32(raw).clamp(max=_MAX_LOG_RATIO + math.log(8.0)).exp()

    def decode(self, pred: Tensor, anchors: Tensor, strides: Tensor | float) -> Tensor:
        """Decodes distances ltrb (..., 4) in strides. See :meth:`BoxCoder.decode`."""
        return _boxes_around(anchors, at_least_float32(pred), strides)


class DistributionCoder(BoxCoder):
    """GFL's general distribution: each side's distance from the anchor's centre is the mean of a softmax over bins.

    Args:
        reg_max: last bin n, in strides; each side has the bins 0 ... n.
    """

    def __init__(self, reg_max: int = 16):
        self.reg_max = reg_max
        self.num_channels = 4 * (reg_max + 1)

    def probabilities(self, pred: Tensor) -> Tensor:
        """(..., 4, n + 1) softmax over the bins of left, top, right and bottom, from logits (..., 4 (n + 1))."""
        return at_least_float32(pred).unflatten(-1, (4, self.reg_max + 1)).softmax(-1)

    def decode(self, pred: Tensor, anchors: Tensor, strides: Tensor | float) -> Tensor:
        """Decodes logits of the bins (..., 4 (n + 1)). See :meth:`BoxCoder.decode`."""
        probabilities = self.probabilities(pred)
        bins = torch.arange(self.reg_max + 1, device=pred.device, dtype=probabilities.dtype)
        # Not a matrix product, which autocast would run in half precision.
        return _boxes_around(anchors, (probabilities * bins).sum(-1), strides)

    def auxiliary_loss(self, pred: Tensor, boxes: Tensor, anchors: Tensor, strides: Tensor) -> dict[str, Tensor]:
        """``loss_dfl`` (P,): the distribution focal loss, averaged over the four sides of each positive."""
        center, _ = _center_size(anchors)
        ltrb = torch.cat((center - boxes[:, :2], boxes[:, 2:] - center), dim=1) / strides.unsqueeze(1)
        target = ltrb.clamp(0, self.reg_max - 0.1)  # so that both neighbouring bins exist
        logits = pred.unflatten(-1, (4, self.reg_max + 1))
        return {"loss_dfl": distribution_focal_loss(logits.flatten(0, 1), target.flatten()).view(-1, 4).mean(-1)}


def _center_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centre (..., 2) and size (..., 2) of XYXY boxes (..., 4)."""
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return (top_left + bottom_right) * 0.5, bottom_right - top_left


def _boxes_around(anchors: Tensor, ltrb: Tensor, strides: Tensor | float) -> Tensor:
    """Boxes (..., 4) whose sides lie ``ltrb`` (..., 4) strides from the anchors' centres."""
    ltrb = ltrb * (strides.unsqueeze(-1) if isinstance(strides, Tensor) else strides)
    center, _ = _center_size(anchors)
    return torch.cat((center - ltrb[..., :2], center + ltrb[..., 2:]), -1)
