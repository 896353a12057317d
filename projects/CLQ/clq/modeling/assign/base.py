"""The interface of all assigners: what they may look at, and what they return.

Legend: N images, L levels, R locations over all levels, K classes, M ground truths of one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from clq.modeling.box_coding import BoxCoder
from clq.modeling.scoring import ScoreRule
from clq.modeling.structures import FlatPredictions


@dataclass(frozen=True)
class AssignmentInputs:
    """Everything that an assigner may look at, for a batch.

    The decoded boxes and the scores are computed when an assigner asks for them, so one that looks at the anchors
    alone does not pay for them.

    Attributes:
        grid_sizes: (H, W) of each level, fine to coarse.
        strides: stride of each level, in pixels.
        anchors: (R, 4) one square anchor per location, XYXY in pixels.
        location_strides: (R,) stride of the level of each location, in pixels.
        valid_sizes: (N, L, 2) int64 on the CPU, the (H, W) of each level that an image covers; the rest is padding.
        valid: (N, R) bool, the same as a mask: False on the padding of the batch, where nothing may be assigned.
        gt_boxes: for each image the ground-truth boxes (M, 4), XYXY in pixels; M may be 0.
        gt_classes: for each image their classes (M,) int64.
        predictions: raw outputs of the network, with gradient.
        coder: box coder that decodes them.
        score: rule by which the trained score is formed.
    """

    grid_sizes: Sequence[tuple[int, int]]
    strides: Sequence[int]
    anchors: Tensor
    location_strides: Tensor
    valid_sizes: Tensor
    valid: Tensor
    gt_boxes: Sequence[Tensor]
    gt_classes: Sequence[Tensor]
    predictions: FlatPredictions
    coder: BoxCoder
    score: ScoreRule

    @cached_property
    def boxes(self) -> Tensor:
        """(N, R, 4) predicted boxes, XYXY in pixels, without gradient."""
        with torch.no_grad():
            return self.coder.decode(self.predictions.box_pred, self.anchors, self.location_strides)

    @cached_property
    def log_scores(self) -> Tensor:
        """(N, R, K) logarithms of the trained scores, without gradient."""
        with torch.no_grad():
            return self.score.trained(self.predictions.cls_logits, self.predictions.quality_logits).log_p

    @property
    def centers(self) -> Tensor:
        """(R, 2) centres xy of the anchors, in pixels."""
        return (self.anchors[:, :2] + self.anchors[:, 2:]) / 2


class Assignment(NamedTuple):
    """Which ground truth each location is trained towards.

    Attributes:
        matched_idxs: (N, R) int64, index of the ground truth among those of its image, or -1 for background.
        max_positives: upper bound on the number of assigned locations in the batch, as a number of the host. It
            should follow from the number of ground truths: to count the locations is a host-device synchronization.
        alignment_metric: (N, R) float32 in [0, 1], TOOD's measure of how well a location serves both tasks, 0 for
            background; None where the assigner does not compute one.
        ignored: (N, R) bool, True at locations that are neither positive nor background and have no class loss; None
            where there are none.
    """

    matched_idxs: Tensor
    max_positives: int
    alignment_metric: Tensor | None = None
    ignored: Tensor | None = None


class Assigner(Protocol):
    """Decides which ground truth each location of a batch is trained towards. docs/add_a_part.md adds one."""

    def __call__(self, inputs: AssignmentInputs) -> Assignment:
        """Assigns a batch, without gradient."""
        ...
