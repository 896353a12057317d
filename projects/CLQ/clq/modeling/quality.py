"""Localisation quality: what the quality branch learns of a box, and where its estimate enters the score."""

from detectron2.structures.boxes import Boxes, matched_pairwise_iou
from torch import Tensor


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


class Centerness:
    """ATSS's branch: learns :func:`centerness`, multiplies the class score at test only."""

    joint = False
    alpha = 1.0

    def target(self, pred_boxes: Tensor, gt_boxes: Tensor, anchors: Tensor) -> Tensor:
        """(P,) centerness of each positive; all arguments (P, 4) XYXY pixels."""
        return centerness(anchors, gt_boxes)


class PredictedIoU:
    """CLQ's LQE branch: learns a box's IoU (eq. 1) and enters the score as IoU^alpha, train and test (eq. 2, 3).

    Args:
        alpha: exponent of the quality, > 0.
        of: whose IoU: ``pred_box``, the decoded box (no gradient), or ``anchor``.

    Raises:
        ValueError: unknown ``of``, or alpha not positive.
    """

    joint = True

    def __init__(self, alpha: float = 0.3, of: str = "pred_box"):
        if of not in ("pred_box", "anchor"):
            raise ValueError(f"the target of the IoU branch is pred_box or anchor, not {of}")
        if not alpha > 0:
            raise ValueError(f"the exponent alpha of the IoU branch must be positive, got {alpha}")
        self.alpha = alpha
        self.of = of

    def target(self, pred_boxes: Tensor, gt_boxes: Tensor, anchors: Tensor) -> Tensor:
        """(P,) IoU of each positive with its ground truth; all arguments (P, 4) XYXY pixels."""
        return box_iou_matched(pred_boxes if self.of == "pred_box" else anchors, gt_boxes)
