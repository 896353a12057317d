"""What the parts of a detector hand to each other: raw predictions, targets, scores.

Legend: N images, R locations over all levels, K classes, P rows (see :class:`Targets`).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Predictions(NamedTuple):
    """Raw outputs.

    From :class:`~clq.modeling.head.dense_head.DenseHead` lists over levels of (N, ., H, W); after :meth:`flatten`
    (N, R, .).

    Attributes:
        cls_logits: K channels.
        box_pred: the coder's channels, the level's scale applied.
        quality_logits: 1 channel; an empty list / None without a quality branch.
        coarse_box_pred: like ``box_pred``, before its refinement; an empty list / None where it has no loss.
    """

    cls_logits: list[Tensor] | Tensor
    box_pred: list[Tensor] | Tensor
    quality_logits: list[Tensor] | Tensor | None
    coarse_box_pred: list[Tensor] | Tensor | None = None

    def flatten(self) -> "Predictions":
        """Levels joined into locations: each (N, R, channels), levels in order, row-major within one."""
        return Predictions(*(_join_levels(x) if x else None for x in self))

    def of_image(self, index: int) -> "Predictions":
        """One image's share: lists over levels of (R_l, channels), row-major."""
        return Predictions(*([x[index].flatten(1).transpose(0, 1) for x in levels or []] for levels in self))


def _join_levels(per_level: list[Tensor]) -> Tensor:
    return torch.cat([x.flatten(2).transpose(1, 2) for x in per_level], dim=1)


class Targets(NamedTuple):
    """What a batch is trained towards, a row for each positive.

    A GPU that had to say how many positives there are would be waited for. So P is a bound that is known beforehand,
    and what follows after the positives are rows too many, of weight zero: each stands at some location, with the
    anchor there for ground truth. What is computed of them must be finite, and is then multiplied by zero.

    Attributes:
        image, location: (P,) int64 each, where the positives are.
        is_positive: (P,) bool, False for a row too many.
        gt_boxes: (P, 4) XYXY pixels of their ground truths.
        gt_classes: (P,) int64.
        valid: (N, R) bool, False on the padding of the batch, which takes no part in any loss.
        num_pos: scalar float32, what the class and quality losses of this rank are divided by: the sum over images of
            max(positives, 1), or the sum of the alignments.
        alignment: (P,) in [0, 1], how well each positive serves both tasks (TOOD), where the matcher says so.
    """

    image: Tensor
    location: Tensor
    is_positive: Tensor
    gt_boxes: Tensor
    gt_classes: Tensor
    valid: Tensor
    num_pos: Tensor
    alignment: Tensor | None = None

    def gather(self, x: Tensor) -> Tensor:
        """(P, C) what x (N, R, C) has at the positives; in the rows too many zero, with a gradient of zero."""
        return torch.where(self.is_positive.unsqueeze(-1), x[self.image, self.location], 0)


class LogScore(NamedTuple):
    """A score p in log space: ``log_p`` = log p and ``log_not_p`` = log(1 - p), of equal shape."""

    log_p: Tensor
    log_not_p: Tensor
