"""Assignment by the IoU of anchors with thresholds, as in RetinaNet (Lin et al. 2017) and Faster R-CNN.

Legend: N images, R locations over all levels, M ground truths of one image.
"""

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from clq.modeling.assign.base import Assignment, AssignmentInputs


def match_max_iou(
    anchors: Tensor, gt_boxes: Tensor, valid: Tensor, *, lower: float, upper: float, low_quality_matches: bool
) -> tuple[Tensor, Tensor]:
    """Matches the anchors of one image to the ground truths that they overlap most.

    An anchor is positive from the upper threshold on and background below the lower one; what lies between is ignored.
    With ``low_quality_matches``, each anchor that no other anchor surpasses in its IoU with some ground truth is
    positive as well, whatever that IoU is above 0. It is matched with the ground truth that it overlaps most itself.
    These are the rules of Detectron2's :class:`Matcher`, except that a ground truth without any overlap matches
    nothing, where Detectron2 makes every anchor positive.

    Args:
        anchors: (R, 4) anchors, XYXY in pixels.
        gt_boxes: (M, 4) ground-truth boxes, XYXY in pixels; M may be 0.
        valid: (R,) bool, False on the padding of the batch, which is background.
        lower: lower threshold.
        upper: upper threshold.
        low_quality_matches: whether the best anchors of a ground truth are positive below the threshold too.

    Returns:
        ``matched_idxs`` (R,) int64, the index of the matched ground truth or -1, and ``ignored`` (R,) bool.
    """
    if not len(gt_boxes):
        return torch.full((len(anchors),), -1, device=anchors.device), torch.zeros_like(valid)
    ious = pairwise_iou(Boxes(gt_boxes.float()), Boxes(anchors)) * valid  # (M, R)
    iou, matched_idxs = ious.max(dim=0)
    positive = iou >= upper
    if low_quality_matches:
        positive |= ((ious == ious.amax(dim=1, keepdim=True)) & (ious > 0)).any(dim=0)
    return torch.where(positive, matched_idxs, -1), (iou >= lower) & ~positive


class MaxIoUAssigner:
    """The assigner of RetinaNet: :func:`match_max_iou` for a batch of images.

    The number of positives does not follow from the number of ground truths, so it is read from the device. On a GPU
    this is a host-device synchronization, which the other assigners do without.

    Args:
        thresholds: the lower and the upper threshold, in (0, 1]; equal thresholds ignore nothing.
        low_quality_matches: whether the best anchors of a ground truth are positive below the threshold too.

    Raises:
        ValueError: the thresholds are not two such numbers in this order.
    """

    def __init__(self, thresholds: tuple[float, float] = (0.4, 0.5), low_quality_matches: bool = True):
        if len(thresholds) != 2 or not 0 < thresholds[0] <= thresholds[1] <= 1:
            raise ValueError(f"the thresholds are two numbers in (0, 1], the lower one first, not {thresholds}")
        self.lower, self.upper = thresholds
        self.low_quality_matches = low_quality_matches

    @torch.no_grad()
    def __call__(self, inputs: AssignmentInputs) -> Assignment:
        """Assigns a batch by its anchors and ground truths alone."""
        matches = [
            match_max_iou(
                inputs.anchors,
                gt_boxes,
                valid,
                lower=self.lower,
                upper=self.upper,
                low_quality_matches=self.low_quality_matches,
            )
            for gt_boxes, valid in zip(inputs.gt_boxes, inputs.valid, strict=True)
        ]
        matched_idxs, ignored = map(torch.stack, zip(*matches, strict=True))
        return Assignment(matched_idxs, max_positives=int((matched_idxs >= 0).sum()), ignored=ignored)
