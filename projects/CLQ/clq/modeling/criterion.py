"""From predictions and an assignment to losses: the one loss of all detectors.

Legend: N images, R locations over all levels, K classes, M ground truths of one image, P entries of positives (see
:class:`~clq.modeling.structures.Targets`).
"""

from collections.abc import Callable, Sequence

import torch
from detectron2.utils import comm
from torch import Tensor
from torch.nn import functional as F

from clq.modeling.assign.atss import start_offsets, to_device_async
from clq.modeling.assign.base import Assignment
from clq.modeling.box_coding import BoxCoder
from clq.modeling.losses import centerness, giou_loss, matched_iou
from clq.modeling.scoring import ScoreRule
from clq.modeling.structures import FlatPredictions, LogScore, Targets

# What a quality branch learns: (P,) from decoded boxes, ground truths and anchors, each (P, 4) XYXY in pixels.
QualityTarget = Callable[[Tensor, Tensor, Tensor], Tensor]
# Weights (P,) of the positives in the box losses: from the score (P, K), the decoded boxes and the anchors (P, 4), and
# the targets.
BoxWeight = Callable[[LogScore, Tensor, Tensor, Targets], Tensor]

_NO_POSITIVES = (
    1e-12  # TOOD's code takes a batch whose sum of alignment metrics is below this for one without positives
)


def iou_target(boxes: Tensor, gt_boxes: Tensor, anchors: Tensor) -> Tensor:
    """(P,) CLQ: IoU of each decoded box with its ground truth, without gradient."""
    return matched_iou(boxes, gt_boxes)


def centerness_target(boxes: Tensor, gt_boxes: Tensor, anchors: Tensor) -> Tensor:
    """(P,) ATSS: centerness of each positive's anchor in its ground truth."""
    return centerness(anchors, gt_boxes)


def weigh_by_centerness(score: LogScore, boxes: Tensor, anchors: Tensor, targets: Targets) -> Tensor:
    """(P,) ATSS: centerness of each positive's anchor in its ground truth."""
    return centerness(anchors, targets.gt_boxes)


def weigh_by_iou(score: LogScore, boxes: Tensor, anchors: Tensor, targets: Targets) -> Tensor:
    """(P,) VFNet: IoU of each positive's decoded box with its ground truth, without gradient."""
    return matched_iou(boxes, targets.gt_boxes).clamp(min=1e-6)


def weigh_by_score(score: LogScore, boxes: Tensor, anchors: Tensor, targets: Targets) -> Tensor:
    """(P,) GFL: the largest trained score over the classes, without gradient."""
    return score.log_p.detach().amax(dim=1).exp()


def weigh_by_alignment_metric(score: LogScore, boxes: Tensor, anchors: Tensor, targets: Targets) -> Tensor:
    """(P,) TOOD: the alignment metric of each positive."""
    assert targets.alignment_metric is not None  # build.py refuses assigners without one
    return targets.alignment_metric


@torch.no_grad()
def make_targets(
    assignment: Assignment,
    gt_boxes: Sequence[Tensor],
    gt_classes: Sequence[Tensor],
    *,
    anchors: Tensor,
    valid: Tensor,
) -> Targets:
    """The targets of a batch.

    Args:
        assignment: the ground truth of each location.
        gt_boxes: for each image its ground-truth boxes (M, 4), XYXY in pixels.
        gt_classes: for each image their classes (M,).
        anchors: (R, 4) anchors, XYXY in pixels.
        valid: (N, R) bool, False on the padding of the batch.
    """
    matched_idxs, max_positives, metric, ignored = assignment
    num_locations = matched_idxs.shape[1]
    positive = matched_idxs >= 0
    index, is_positive = nonzero_padded(positive.flatten(), min(max_positives, positive.numel()))
    image, location = index // num_locations, index % num_locations
    offset = to_device_async(start_offsets([len(b) for b in gt_boxes]), anchors.device)
    gt = torch.where(is_positive, matched_idxs[image, location] + offset[image], 0)
    return Targets(
        image=image,
        location=location,
        is_positive=is_positive,
        gt_boxes=torch.where(is_positive.unsqueeze(-1), torch.cat(list(gt_boxes))[gt], anchors[location]),
        gt_classes=torch.cat(list(gt_classes))[gt],
        valid=valid if ignored is None else valid & ~ignored,
        num_pos=positive.sum(dim=1).clamp(min=1).sum().float() if metric is None else metric.sum(),
        alignment_metric=None if metric is None else metric[image, location],
    )


def nonzero_padded(mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """:meth:`Tensor.nonzero` of a mask (X,) without a host-device synchronization.

    Args:
        mask: (X,) bool with at most ``size`` true elements.
        size: number of indices to return, at most X.

    Returns:
        ``index`` (size,) int64, the indices of the true elements in order, followed by padding entries, and ``is_true``
        (size,) bool, False for the padding entries. These refer to elements that are all different, because a GPU would
        add up the gradients of equal ones one after the other.
    """
    counter = torch.arange(len(mask), device=mask.device)
    slot = torch.where(mask, mask.cumsum(0) - 1, size)  # all false elements go to one extra slot, which is cut off
    index = torch.cat((counter[:size], counter[:1])).scatter_(0, slot, counter)[:size]
    return index, counter[:size] < mask.sum()


def gather(x: Tensor, targets: Targets) -> Tensor:
    """(P, C) values of x (N, R, C) at the positives; padding entries are zero, and so is their gradient."""
    return torch.where(targets.is_positive.unsqueeze(-1), x[targets.image, targets.location], 0)


class DetectionLoss:
    r"""Class loss on the trained score, GIoU loss on the decoded box, and the loss of the quality branch.

    The class and quality losses are divided by the number of positives (TOOD: by the sum of the alignment metric). The
    box losses are divided by the same number or, where the positives are weighted, by the sum of their weights. One
    without any positive counts as 1. The normalizers are those of the batch of all ranks, divided by the number of
    ranks, lower bounds included, so that the average of the ranks' losses is the loss of one rank with the whole batch.
    The keys of the losses do not depend on the batch, and a batch without objects gives every prediction a gradient of
    zero.

    Args:
        score: rule by which the trained score is formed.
        coder: box coder that decodes the boxes, and may add a loss of its own (``loss_dfl``).
        class_loss: elementwise loss of a LogScore and its target, both (N, R, K).
        soft_target: whether the class target of a positive is its alignment metric or, without one, the IoU of its
            decoded box; otherwise it is 1. No gradient flows into the target.
        quality_target: function for what the quality branch learns by binary cross entropy, or None.
        box_weight: function for the weights of the positives in the box losses, or None for equal weights. Like
            ``quality_target``, it must be finite for padding entries.
        box_weight_floor: lower bound of the sum of these weights, by which the box losses are divided. MMDetection has
            1 for ATSS, GFL and VFNet, which shrinks the box losses of small batches early in training. The authors of
            GFLv2, CLQ, NanoDet and TOOD have none. With 0 the loss is the weighted mean for any sum above 1e-38.
        box_loss_weight: weight of the GIoU loss.
        coarse_loss_weight: weight of the GIoU loss of the boxes before their refinement, where there is one.
        coder_loss_weight: weight of the coder's own loss.
        quality_loss_weight: weight of the loss of the quality branch.
    """

    def __init__(
        self,
        score: ScoreRule,
        coder: BoxCoder,
        class_loss: Callable[[LogScore, Tensor], Tensor],
        *,
        soft_target: bool,
        quality_target: QualityTarget | None = None,
        box_weight: BoxWeight | None = None,
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
        self.box_weight_floor = box_weight_floor
        self.box_loss_weight = box_loss_weight
        self.coarse_loss_weight = coarse_loss_weight
        self.coder_loss_weight = coder_loss_weight
        self.quality_loss_weight = quality_loss_weight

    def __call__(
        self, predictions: FlatPredictions, targets: Targets, anchors: Tensor, strides: Tensor
    ) -> dict[str, Tensor]:
        """Scalar losses, float32: ``loss_cls``, ``loss_box``, the coder's own, ``loss_box_coarse``, ``loss_quality``.

        Args:
            predictions: raw outputs of the network at all locations.
            targets: what the batch is trained towards.
            anchors: (R, 4) anchors, XYXY in pixels.
            strides: (R,) strides of the locations, in pixels.
        """
        anchors, strides = anchors[targets.location], strides[targets.location]
        box_pred = gather(predictions.box_pred, targets)
        boxes = self.coder.decode(box_pred, anchors, strides)
        num_pos = mean_over_ranks(targets.num_pos)
        num_pos = torch.where(num_pos > _NO_POSITIVES, num_pos, 1.0 / comm.get_world_size())

        score = self.score.trained(predictions.cls_logits, predictions.quality_logits)
        losses = {"loss_cls": self._class_loss(score, boxes, targets) / num_pos}

        score = LogScore(gather(score.log_p, targets), gather(score.log_not_p, targets))
        weight = self._box_weight(score, boxes, anchors, targets, num_pos)
        losses["loss_box"] = (giou_loss(boxes, targets.gt_boxes) * weight).sum() * self.box_loss_weight
        for name, loss in self.coder.auxiliary_loss(box_pred, targets.gt_boxes, anchors, strides).items():
            losses[name] = (loss * weight).sum() * self.coder_loss_weight
        if predictions.coarse_box_pred is not None:
            coarse = self.coder.decode(gather(predictions.coarse_box_pred, targets), anchors, strides)
            weight = self._box_weight(score, coarse, anchors, targets, num_pos)
            losses["loss_box_coarse"] = (giou_loss(coarse, targets.gt_boxes) * weight).sum() * self.coarse_loss_weight

        if self.quality_target is not None:
            assert predictions.quality_logits is not None  # a target without a branch would be a fault of build.py
            logits = gather(predictions.quality_logits, targets).squeeze(-1).float()
            target, weight = self.quality_target(boxes, targets.gt_boxes, anchors), targets.is_positive.float()
            bce = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")
            losses["loss_quality"] = bce / num_pos * self.quality_loss_weight
        return losses

    def _box_weight(self, score: LogScore, boxes: Tensor, anchors: Tensor, targets: Targets, num_pos: Tensor) -> Tensor:
        """(P,) weights of the positives' box losses, already divided by their sum or by the number of positives."""
        weight = targets.is_positive.float()
        if self.box_weight is None:
            return weight / num_pos
        weight = weight * self.box_weight(score, boxes, anchors, targets)
        # Without a floor this is the smallest normal number. Weights are divided by their sum before anything else, so
        # that they and all gradients are finite for any sum, and zero where it is zero.
        floor = max(self.box_weight_floor / comm.get_world_size(), torch.finfo(torch.float32).tiny)
        return weight / mean_over_ranks(weight.sum()).clamp(min=floor)

    def _class_loss(self, score: LogScore, boxes: Tensor, targets: Targets) -> Tensor:
        target = torch.zeros_like(score.log_p)
        value = targets.is_positive.float()
        if self.soft_target:
            metric = targets.alignment_metric
            value = value * (matched_iou(boxes, targets.gt_boxes) if metric is None else metric)
        # Added, not set, because a padding entry may refer to the place of a positive, to which it adds zero.
        index = targets.image, targets.location, targets.gt_classes
        target.index_put_(index, value.to(target.dtype), accumulate=True)
        return (self.class_loss(score, target) * targets.valid.unsqueeze(-1)).sum()


def mean_over_ranks(x: Tensor) -> Tensor:
    """A scalar without gradient, averaged over all ranks."""
    world_size = comm.get_world_size()
    if world_size == 1:
        return x
    x = x.clone()
    torch.distributed.all_reduce(x)
    return x / world_size
