"""Box coders: what the regression branch predicts, and the boxes it means.

A coder decodes any layout: predictions (..., C), anchors (..., 4) and strides (...) broadcast against each other. Boxes
are XYXY. Pixels with the real anchors and strides; with the unit anchor of :func:`unit_anchor` and stride 1 the same
call gives boxes in stride units relative to their location, which is what alignment needs.
"""

import math

import torch
from torch import Tensor

from clq.modeling.losses import distribution_focal_loss
from clq.modeling.scoring import at_least_float32

# Width and height change by at most this factor either way (R-CNN's max ratio; both sides, as MMDetection does).
_MAX_LOG_RATIO = math.log(1000.0 / 16.0)


def unit_anchor(anchor_scale: float) -> Tensor:
    """(4,) the square anchor in stride units, centred on its location."""
    half = anchor_scale / 2
    return torch.tensor([-half, -half, half, half])


class BoxCoder:
    """What coders share: the defaults of the two steps that few of them have."""

    def activate(self, raw: Tensor) -> Tensor:
        """The prediction from the output of the head's convolution, before the level's scale."""
        return raw

    def auxiliary_loss(self, pred: Tensor, boxes: Tensor, anchors: Tensor, strides: Tensor) -> dict[str, Tensor]:
        """Losses (P,) of P positives by name, beside that of the decoded box; none."""
        return {}


class DeltaCoder(BoxCoder):
    """R-CNN's deltas: shift of the centre over the anchor's size, and log ratio of the sizes, each times a weight.

    ``encode`` and ``decode`` are inverse to each other for boxes of positive size within a factor 62.5 of the anchor.
    Unlike Detectron2's Box2BoxTransform, shrinking is clamped like growing, and any leading shape decodes.

    Args:
        weights: of (dx, dy, dw, dh); the inverse of the standard deviations in MMDetection's terms.
    """

    num_channels = 4

    def __init__(self, weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)):
        self.weights = tuple(weights)

    def decode(self, pred: Tensor, anchors: Tensor, strides: Tensor | float) -> Tensor:
        """Boxes (..., 4) XYXY in the units of ``anchors``, from deltas (..., 4); ``strides`` are not needed here."""
        dx, dy, dw, dh = at_least_float32(pred).unbind(-1)
        wx, wy, ww, wh = self.weights
        center, size = _center_size(anchors)
        center = center + torch.stack((dx / wx, dy / wy), -1) * size
        log_ratio = torch.stack((dw / ww, dh / wh), -1).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
        half = 0.5 * size * log_ratio.exp()
        return torch.cat((center - half, center + half), -1)

    def encode(self, boxes: Tensor, anchors: Tensor, strides: Tensor | float) -> Tensor:
        """Deltas (..., 4) that decode to ``boxes`` (..., 4), both box tensors in the same units."""
        center, size = _center_size(boxes)
        anchor_center, anchor_size = _center_size(anchors)
        deltas = torch.cat(((center - anchor_center) / anchor_size, (size / anchor_size).log()), -1)
        return deltas * deltas.new_tensor(self.weights)


class LogDistanceCoder(BoxCoder):
    """VFNet's distances: each side lies exp(x) anchor sizes from the anchor's centre; of any sign, so always a box.

    ``encode`` and ``decode`` are inverse to each other for boxes around the anchor's centre.
    """

    num_channels = 4

    def decode(self, pred: Tensor, anchors: Tensor, strides: Tensor | float) -> Tensor:
        """Boxes (..., 4) XYXY in the units of ``anchors``, from log distances ltrb (..., 4); ``strides`` are unused."""
        center, size = _center_size(anchors)
        left_top, right_bottom = at_least_float32(pred).clamp(max=_MAX_LOG_RATIO).exp().split(2, dim=-1)
        return torch.cat((center - left_top * size, center + right_bottom * size), -1)

    def encode(self, boxes: Tensor, anchors: Tensor, strides: Tensor | float) -> Tensor:
        """Log distances ltrb (..., 4) that decode to ``boxes`` (..., 4), which hold the anchors' centres."""
        center, size = _center_size(anchors)
        return torch.cat(((center - boxes[..., :2]) / size, (boxes[..., 2:] - center) / size), -1).log()


class LinearDistanceCoder(BoxCoder):
    """TOOD's distances: each side lies x strides from the anchor's centre, where x may be negative after a refinement.

    ``encode`` and ``decode`` are inverse to each other.
    """

    num_channels = 4

    def activate(self, raw: Tensor) -> Tensor:
        """Positive distances in strides, at most the 62.5 sizes of an anchor of 8 strides."""
        return at_least_float32(raw).clamp(max=_MAX_LOG_RATIO + math.log(8.0)).exp()

    def decode(self, pred: Tensor, anchors: Tensor, strides: Tensor | float) -> Tensor:
        """Boxes (..., 4) XYXY in the units of ``anchors``, from distances ltrb (..., 4) and strides (...)."""
        return _boxes_around(anchors, at_least_float32(pred), strides)

    def encode(self, boxes: Tensor, anchors: Tensor, strides: Tensor | float) -> Tensor:
        """Distances ltrb (..., 4) in strides that decode to ``boxes`` (..., 4)."""
        return _ltrb(boxes, anchors, strides)


class DistributionCoder(BoxCoder):
    """GFL's general distribution: each side's distance from the anchor's centre is the mean of a softmax over bins.

    Args:
        reg_max: n, the last bin, in strides; each side has bins 0 ... n.
    """

    def __init__(self, reg_max: int = 16):
        self.reg_max = reg_max
        self.num_channels = 4 * (reg_max + 1)

    def probabilities(self, pred: Tensor) -> Tensor:
        """(..., 4, n + 1) softmax over the bins of left, top, right and bottom, from logits (..., 4 (n + 1))."""
        return at_least_float32(pred).unflatten(-1, (4, self.reg_max + 1)).softmax(-1)

    def decode(self, pred: Tensor, anchors: Tensor, strides: Tensor | float) -> Tensor:
        """Boxes (..., 4) XYXY in the units of ``anchors``, from logits (..., 4 (n + 1)) and strides (...)."""
        probabilities = self.probabilities(pred)
        bins = torch.arange(self.reg_max + 1, device=pred.device, dtype=probabilities.dtype)
        # No matrix product: autocast would take it to half precision.
        return _boxes_around(anchors, (probabilities * bins).sum(-1), strides)

    def encode(self, boxes: Tensor, anchors: Tensor, strides: Tensor | float) -> Tensor:
        """Distances ltrb (..., 4) in strides, clamped to [0, n - 0.1] so that both neighbouring bins exist."""
        return _ltrb(boxes, anchors, strides).clamp(0, self.reg_max - 0.1)

    def auxiliary_loss(self, pred: Tensor, boxes: Tensor, anchors: Tensor, strides: Tensor) -> dict[str, Tensor]:
        """``loss_dfl`` (P,): distribution focal loss, averaged over the four sides, for P positives."""
        target = self.encode(boxes, anchors, strides)
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


def _ltrb(boxes: Tensor, anchors: Tensor, strides: Tensor | float) -> Tensor:
    """Inverse of :func:`_boxes_around`."""
    center, _ = _center_size(anchors)
    ltrb = torch.cat((center - boxes[..., :2], boxes[..., 2:] - center), -1)
    return ltrb / (strides.unsqueeze(-1) if isinstance(strides, Tensor) else strides)
