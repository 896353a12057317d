"""From predictions and targets to losses: the one loss of all rows.

Legend: N images, R locations over all levels, K classes, P rows of positives (see :class:`Targets`).
"""

from collections.abc import Callable

import torch
from detectron2.utils import comm
from torch import Tensor
from torch.nn import functional as F

from clq.modeling.head.quality import box_iou_matched, centerness
from clq.modeling.losses import giou_loss
from clq.modeling.scoring import ScoreRule
from clq.modeling.structures import LogScore, Targets

_NO_POSITIVES = 1e-12  # a sum of alignments below this is that of a batch without positives, as in TOOD's code


def weigh_by_centerness(score: LogScore, boxes: Tensor, anchors: Tensor, targets: Targets) -> Tensor:
    """(P,) ATSS: centerness of each positive's anchor (P, 4) in its ground truth."""
    return centerness(anchors, targets.gt_boxes)


def weigh_by_iou(score: LogScore, boxes: Tensor, anchors: Tensor, targets: Targets) -> Tensor:
    """(P,) VFNet: IoU of each positive's decoded box (P, 4) with its ground truth, without gradient."""
    return box_iou_matched(boxes, targets.gt_boxes).clamp(min=1e-6)


def weigh_by_score(score: LogScore, boxes: Tensor, anchors: Tensor, targets: Targets) -> Tensor:
    """(P,) GFL: the largest score over the classes, without gradient, from the score (P, K) that is trained."""
    return score.log_p.detach().amax(dim=1).exp()


def weigh_by_alignment_metric(score: LogScore, boxes: Tensor, anchors: Tensor, targets: Targets) -> Tensor:
    """(P,) TOOD: what the task-aligned matcher gave each positive."""
    return targets.alignment


class DetectionLoss:
    r"""Class loss on the final score, GIoU on the decoded box, and the quality branch's binary cross entropy.

    Class and quality losses are divided by the number of positives (TOOD: by the sum of their alignments); the box
    losses by the same, or, where positives are weighted, by the sum of the weights. Normalisers are averaged over
    ranks; without any positive they count as 1. The keys of the losses do not depend on the batch, and a batch without
    objects gives every prediction a gradient of zero.

    Args:
        score: which score is trained.
        coder: decodes boxes; may add its own loss (``loss_dfl``).
        class_loss: elementwise loss of (LogScore, target), both (N, R, K).
        soft_target: a positive's class target is its alignment, or else the IoU of its decoded box (no gradient);
            False: 1.
        quality_target: what the quality branch learns, (P,) from (decoded boxes, ground truths, anchors), all (P, 4)
            XYXY pixels; None for nothing of its own.
        box_weight: weight (P,) of each positive in the box losses, from (its score, decoded box, anchor, the
            targets); None: 1. It and ``quality_target`` must be finite for the targets' rows too many.
        box_weight_floor: least value of the sum of these weights that the box losses are divided by. MMDetection has 1
            in ATSS, GFL and VFNet, which shrinks the box losses of small batches early in training; the authors of
            GFLv2, CLQ, NanoDet and TOOD have none, 0: the loss is then the weighted mean for any sum above 1e-38.
        box_loss_weight: of GIoU.
        coarse_loss_weight: of GIoU on the boxes before their refinement, where there is one.
        coder_loss_weight: of the coder's own loss.
        quality_loss_weight: of the quality's BCE.
    """

    def __init__(
        self,
        score: ScoreRule,
        coder,
        class_loss: Callable[[LogScore, Tensor], Tensor],
        *,
        soft_target: bool,
        quality_target: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        box_weight: Callable[[LogScore, Tensor, Tensor, Targets], Tensor] | None = None,
        box_weight_floor: float = 0.0,
        box_loss_weight: float = 1.0,
        coarse_loss_weight: float = 1.5,
        coder_loss_weight: float = 0.25,
        quality_loss_weight: float = 1.0,
    ):
        self.score = score
        self.coder = coder
        self.class_loss = class_loss
        self.soft_target = soft_target
        self.quality_target = quality_target
        self.box_weight = box_weight
        # With no floor the smallest normal number: weights are divided by their sum before anything else, so that they
        # and all gradients stay finite for any sum, and are zero where it is.
        self.box_weight_floor = max(box_weight_floor, torch.finfo(torch.float32).tiny)
        self.box_loss_weight = box_loss_weight
        self.coarse_loss_weight = coarse_loss_weight
        self.coder_loss_weight = coder_loss_weight
        self.quality_loss_weight = quality_loss_weight

    def __call__(self, predictions, targets: Targets, anchors: Tensor, strides: Tensor) -> dict[str, Tensor]:
        """Scalar losses, float32: ``loss_cls``, ``loss_box``, the coder's own, ``loss_box_coarse``, ``loss_quality``.

        Args:
            predictions: flattened :class:`~clq.modeling.structures.Predictions`.
            targets: :class:`Targets`.
            anchors: (R, 4) XYXY pixels.
            strides: (R,) pixels.
        """
        cls_logits, box_pred, quality_logits, coarse_box_pred = predictions
        anchors, strides, box_pred = anchors[targets.location], strides[targets.location], targets.gather(box_pred)
        boxes = self.coder.decode(box_pred, anchors, strides)
        num_pos = mean_over_ranks(targets.num_pos)
        num_pos = torch.where(num_pos > _NO_POSITIVES, num_pos, 1.0)

        score = self.score.trained(cls_logits, quality_logits)
        losses = {"loss_cls": self._class_loss(score, boxes, targets) / num_pos}

        score = LogScore(*map(targets.gather, score))
        box_losses = {"loss_box": giou_loss(boxes, targets.gt_boxes) * self.box_loss_weight}
        for name, loss in self.coder.auxiliary_loss(box_pred, targets.gt_boxes, anchors, strides).items():
            box_losses[name] = loss * self.coder_loss_weight
        losses.update(self._weighted(box_losses, score, boxes, anchors, targets, num_pos))
        if coarse_box_pred is not None:
            coarse = self.coder.decode(targets.gather(coarse_box_pred), anchors, strides)
            coarse_losses = {"loss_box_coarse": giou_loss(coarse, targets.gt_boxes) * self.coarse_loss_weight}
            losses.update(self._weighted(coarse_losses, score, coarse, anchors, targets, num_pos))

        if self.quality_target is not None:
            quality_logits = targets.gather(quality_logits).squeeze(-1).float()
            target, weight = self.quality_target(boxes, targets.gt_boxes, anchors), targets.is_positive.float()
            bce = F.binary_cross_entropy_with_logits(quality_logits, target, weight, reduction="sum")
            losses["loss_quality"] = bce / num_pos * self.quality_loss_weight
        return losses

    def _weighted(self, losses, score, boxes, anchors, targets, num_pos) -> dict[str, Tensor]:
        """Sums of the losses (P,) of positives, weighted, over the sum of the weights or the number of positives."""
        weight, norm = targets.is_positive.float(), num_pos
        if self.box_weight is not None:
            weight = weight * self.box_weight(score, boxes, anchors, targets)
            norm = mean_over_ranks(weight.sum()).clamp(min=self.box_weight_floor)
        weight = weight / norm
        return {name: (loss * weight).sum() for name, loss in losses.items()}

    def _class_loss(self, score: LogScore, boxes: Tensor, targets: Targets) -> Tensor:
        target = torch.zeros_like(score.log_p)
        value = targets.is_positive.float()
        if self.soft_target:
            iou = box_iou_matched(boxes, targets.gt_boxes)
            value = value * (iou if targets.alignment is None else targets.alignment)
        # Added, not set: a row too many adds its zero to what may be a positive.
        where = targets.image, targets.location, targets.gt_classes
        target.index_put_(where, value.to(target.dtype), accumulate=True)
        return (self.class_loss(score, target) * targets.valid.unsqueeze(-1)).sum()


def mean_over_ranks(x: Tensor) -> Tensor:
    """A scalar without gradient, averaged over all ranks."""
    world_size = comm.get_world_size()
    if world_size == 1:
        return x
    x = x.clone()
    torch.distributed.all_reduce(x)
    return x / world_size
