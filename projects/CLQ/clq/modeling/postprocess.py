"""From the outputs of the head to detections."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.layers import batched_nms
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from clq.modeling.box_coding import BoxCoder
from clq.modeling.scoring import ScoreRule
from clq.modeling.structures import Predictions


@dataclass(frozen=True)
class DetectionSelector:
    """Selects detections: score threshold and top-k on each level, decoding, clipping, class-wise NMS.

    What the top-k counts differs between code bases. MMDetection 3 counts pairs of a location and a class, and drops
    boxes without area before NMS. MMDetection 2.6, on which CLQ's authors built, and NanoDet count locations by their
    best class, keep all classes above the threshold at these, and keep boxes without area.

    Attributes:
        score: rule of the scores. ``score.trained`` filters the candidates and ``score.final`` is what they carry; the
            two differ for ATSS only.
        coder: box coder that decodes the boxes.
        score_thresh: threshold in [0, 1) that a candidate's score must exceed.
        topk_candidates: upper bound on the number of candidates of a level.
        count_locations: whether the top-k counts locations; otherwise it counts pairs of a location and a class.
        nms_thresh: IoU above which NMS removes the lower of two boxes of the same class.
        max_detections: upper bound on the number of detections of an image.
    """

    score: ScoreRule
    coder: BoxCoder
    score_thresh: float = 0.05
    topk_candidates: int = 1000
    nms_thresh: float = 0.6
    max_detections: int = 100
    count_locations: bool = False

    def candidates(
        self, predictions: Predictions, anchors: list[Tensor], strides: list[int], image_size: tuple[int, int]
    ) -> Instances:
        """The best of each level among what scores above the threshold.

        Args:
            predictions: outputs for one image, lists over levels of (R_l, channels).
            anchors: for each level its anchors (R_l, 4), XYXY in pixels.
            strides: stride of each level, in pixels.
            image_size: (H, W) of the network's input without padding.

        Returns:
            :class:`Instances` with ``pred_boxes`` (which may extend beyond the image), ``scores`` (final),
            ``pred_classes``, ``levels`` (index of the FPN level), ``locations`` (index within the level) and, where
            there is a quality branch, ``cls_scores`` and ``pred_quality``.
        """
        quality_logits: Sequence[Tensor | None] = predictions.quality_logits or [None] * len(anchors)
        levels = zip(predictions.cls_logits, predictions.box_pred, quality_logits, anchors, strides, strict=True)
        return Instances.cat([self._of_level(i, *level, image_size=image_size) for i, level in enumerate(levels)])

    def select(self, candidates: Instances) -> Instances:
        """Clips the candidates of an image to it, in place, and returns those that class-wise NMS keeps, best first."""
        candidates.pred_boxes.clip(candidates.image_size)
        found = candidates if self.count_locations else candidates[candidates.pred_boxes.nonempty()]
        keep = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, self.nms_thresh)
        # torchvision's NMS leaves equal scores in any order; sorting puts the first candidate first.
        keep = keep.sort().values
        return found[keep[found.scores[keep].argsort(descending=True, stable=True)][: self.max_detections]]

    def _of_level(
        self,
        level: int,
        cls_logits: Tensor,
        box_pred: Tensor,
        quality_logits: Tensor | None,
        anchors: Tensor,
        stride: int,
        *,
        image_size: tuple[int, int],
    ) -> Instances:
        """Candidates of one level, from its predictions (R_l, channels) and anchors (R_l, 4)."""
        # No quality raises a score above the class score (to its power), so a comparison of the class logit rules out
        # almost everything. The margin, which half precision would lose, leaves borderline cases to the exact test.
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
        out.levels, out.locations = torch.full_like(location, level), location
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
    """Maps detections to pixels of the original image, clips them to it, and drops those without area there.

    Args:
        found: detections in pixels of the network's input, of size ``image_size``; they may be changed.
        batched_input: input of the model for that image. Where it has ``input_from_image``, the (3, 3) matrix from
            pixels of the image to pixels of the input, boxes are mapped through the inverse (the hull of their four
            corners), and it must have ``height`` and ``width``. Otherwise boxes are scaled to ``height`` and ``width``
            as in Detectron2, or stay as they are where these are missing.
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
