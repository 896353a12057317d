"""From the head's outputs to detections."""

import math
from dataclasses import dataclass

import torch
from detectron2.layers import batched_nms
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from clq.modeling.scoring import ScoreRule


@dataclass(frozen=True)
class DetectionSelector:
    """Score threshold and top-k per level, decoding of what is left, clipping, class-wise NMS.

    What the top-k counts differs between code bases. MMDetection 3 counts pairs of a location and a class, and drops
    boxes without area before NMS. MMDetection 2.6, on which CLQ's authors built, and NanoDet count locations by their
    best class, keep all classes above the threshold there, and keep boxes without area.

    Attributes:
        score: candidates are filtered by ``score.trained`` and carry ``score.final`` (which differ for ATSS alone).
        coder: decodes boxes.
        score_thresh: candidates score above this, in [0, 1).
        topk_candidates: at most this many per level.
        count_locations: the top-k counts locations; otherwise pairs of a location and a class.
        nms_thresh: IoU above which the lower of two boxes of a class goes.
        max_detections: at most so many per image.
    """

    score: ScoreRule
    coder: object
    score_thresh: float = 0.05
    topk_candidates: int = 1000
    nms_thresh: float = 0.6
    max_detections: int = 100
    count_locations: bool = False

    def __call__(
        self, predictions, anchors: list[Tensor], strides: list[int], image_size: tuple[int, int]
    ) -> Instances:
        """Detections of one image, best first: :meth:`candidates`, then :meth:`select`."""
        return self.select(self.candidates(predictions, anchors, strides, image_size))

    def candidates(
        self, predictions, anchors: list[Tensor], strides: list[int], image_size: tuple[int, int]
    ) -> Instances:
        """What scores above the threshold, the best of each level.

        Args:
            predictions: :class:`~clq.modeling.structures.Predictions` of one image: lists over levels of
                (R_l, channels).
            anchors: per level (R_l, 4) XYXY pixels.
            strides: per level.
            image_size: (H, W) of the network's input without padding.

        Returns:
            :class:`Instances` with ``pred_boxes`` (which may reach out of the image), ``scores`` (final),
            ``pred_classes`` and, where there is a quality branch, ``cls_scores`` and ``pred_quality``.
        """
        cls_logits, box_pred, quality_logits, _ = predictions
        quality_logits = quality_logits or [None] * len(cls_logits)
        levels = zip(cls_logits, box_pred, quality_logits, anchors, strides, strict=True)
        return Instances.cat([self._of_level(*level, image_size) for level in levels])

    def select(self, candidates: Instances) -> Instances:
        """Clips the boxes of an image's candidates to it (in place); those that class-wise NMS leaves, best first."""
        candidates.pred_boxes.clip(candidates.image_size)
        found = candidates if self.count_locations else candidates[candidates.pred_boxes.nonempty()]
        keep = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, self.nms_thresh)
        # Of many boxes torchvision's leaves equal scores in any order; here the first candidate comes first.
        keep = keep.sort().values
        return found[keep[found.scores[keep].argsort(descending=True, stable=True)][: self.max_detections]]

    def _of_level(self, cls_logits, box_pred, quality_logits, anchors, stride, image_size) -> Instances:
        # No quality raises a score above the class score (to its power), so that logit alone rules out almost
        # everything, at the cost of one comparison. The margin (lost in half precision) leaves the verdict on the
        # borderline to the exact one.
        thresh = max(self.score_thresh, torch.finfo(torch.float32).tiny) ** (1 / self.score.cls_alpha)
        location, label = (cls_logits.float() > math.log(thresh / (1 - thresh)) - 1e-3).nonzero(as_tuple=True)
        logits = cls_logits[location, label].unsqueeze(-1)
        quality = None if quality_logits is None else quality_logits[location]
        filter_score = self.score.trained(logits, quality).log_p.squeeze(-1).exp()

        keep = self._top(filter_score, location, len(cls_logits))
        location, label, logits = location[keep], label[keep], logits[keep]
        quality = None if quality is None else quality[keep]
        out = Instances(image_size)
        out.pred_boxes = Boxes(self.coder.decode(box_pred[location], anchors[location], float(stride)))
        out.scores = self.score.final(logits, quality).log_p.squeeze(-1).exp()
        out.pred_classes = label
        if quality is not None:
            out.cls_scores = logits.squeeze(-1).float().sigmoid()
            out.pred_quality = quality.squeeze(-1).float().sigmoid()
        return out

    def _top(self, score: Tensor, location: Tensor, num_locations: int) -> Tensor:
        """Indices of the pairs (P,) of one level that stay, best first, from their filter scores and locations."""
        keep = (score > self.score_thresh).nonzero().squeeze(-1)
        keep = keep[score[keep].argsort(descending=True, stable=True)]
        if not self.count_locations:
            return keep[: self.topk_candidates]
        best = score.new_zeros(num_locations).scatter_reduce_(0, location, score, "amax")
        chosen = best.argsort(descending=True, stable=True)[: self.topk_candidates]
        return keep[torch.zeros_like(best, dtype=torch.bool).index_fill_(0, chosen, True)[location[keep]]]


def moved_to_image(found: Instances, batched_input: dict) -> Instances:
    """Detections of the network's input in pixels of the image, clipped to it, without those that have no area there.

    Args:
        found: detections of the input, on which they have their ``image_size``; may be changed.
        batched_input: of the same image, as the model gets it. With ``input_from_image``, the (3, 3) matrix from the
            image's pixels to the input's, boxes go back through its inverse (the hull of the four corners) and
            ``height`` and ``width`` must be there. Without, they are scaled to ``height`` and ``width``, as in
            Detectron2; where these are missing, they stay.
    """
    if "input_from_image" not in batched_input:
        height, width = found.image_size
        return detector_postprocess(found, batched_input.get("height", height), batched_input.get("width", width))
    size = batched_input["height"], batched_input["width"]
    boxes = found.pred_boxes.tensor
    inverse = torch.linalg.inv(batched_input["input_from_image"].double().cpu()).to(boxes)  # MPS has no float64
    corners = boxes[:, [0, 1, 2, 1, 0, 3, 2, 3]].view(-1, 4, 2) @ inverse[:2, :2].T + inverse[:2, 2]
    moved = Instances(size, **found.get_fields())
    moved.pred_boxes = Boxes(torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1).to(boxes.dtype))
    moved.pred_boxes.clip(size)
    return moved[moved.pred_boxes.nonempty()]
