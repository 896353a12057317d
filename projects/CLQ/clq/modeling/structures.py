"""What the parts of a detector pass to each other: predictions, targets, scores.

Legend: N images, L levels, R locations over all levels (levels fine to coarse, row-major within a level), K classes,
P entries of positives (see :class:`Targets`).
"""

from typing import NamedTuple

from torch import Tensor


class Predictions(NamedTuple):
    """Raw outputs of the head: lists over the L levels of maps (N, channels, H, W).

    Attributes:
        cls_logits: class logits, K channels.
        box_pred: box predictions with the coder's channels, after the scale of each level.
        quality_logits: quality logits, 1 channel; an empty list where there is no quality branch.
        coarse_box_pred: box predictions before their refinement; an empty list where these have no loss.
    """

    cls_logits: list[Tensor]
    box_pred: list[Tensor]
    quality_logits: list[Tensor]
    coarse_box_pred: list[Tensor]

    def of_image(self, index: int) -> "Predictions":
        """The predictions of one image: lists over levels of (R_l, channels), row-major."""
        return Predictions(*([x[index].flatten(1).transpose(0, 1) for x in levels] for levels in self))


class FlatPredictions(NamedTuple):
    """The outputs of all levels, joined over the locations: tensors (N, R, channels).

    Attributes:
        cls_logits: class logits (N, R, K).
        box_pred: box predictions (N, R, C).
        quality_logits: quality logits (N, R, 1), or None where there is no quality branch.
        coarse_box_pred: box predictions before their refinement (N, R, C), or None where these have no loss.
    """

    cls_logits: Tensor
    box_pred: Tensor
    quality_logits: Tensor | None
    coarse_box_pred: Tensor | None = None


class Targets(NamedTuple):
    """What a batch is trained towards: one entry for each positive location.

    The exact number of positives is known on the GPU only, and reading it would be a host-device synchronization.
    Hence P is an upper bound that the host knows. The entries after the positives are padding entries with weight
    zero: each refers to some location, and the anchor there stands in for the ground truth. What is computed for a
    padding entry must be finite, and is then multiplied by zero.

    Attributes:
        image: (P,) int64, index of the image of each entry.
        location: (P,) int64, index of its location among the R.
        is_positive: (P,) bool, False for a padding entry.
        gt_boxes: (P, 4) ground-truth boxes, XYXY in pixels.
        gt_classes: (P,) int64, classes of the ground truths.
        valid: (N, R) bool, False at the locations that take no part in the class loss: the padding of the batch, and
            what the assigner ignores.
        num_pos: scalar float32, the normalizer of the class and quality losses on this rank: the sum over the images
            of max(positives, 1), or the sum of the alignment metric.
        alignment_metric: (P,) in [0, 1], TOOD's measure of how well each positive serves both tasks; None where the
            assigner does not compute one.
    """

    image: Tensor
    location: Tensor
    is_positive: Tensor
    gt_boxes: Tensor
    gt_classes: Tensor
    valid: Tensor
    num_pos: Tensor
    alignment_metric: Tensor | None = None


class LogScore(NamedTuple):
    """A score p in log space: ``log_p`` = log p and ``log_not_p`` = log(1 - p), tensors of the same shape."""

    log_p: Tensor
    log_not_p: Tensor
