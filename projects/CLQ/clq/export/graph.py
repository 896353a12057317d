"""A detector as one function of tensors, from pixels to detections, in a form that exporters can follow.

Its results are those of the detector itself. What differs is the form: eager code keeps the candidates only, whose
number depends on the image, where a graph keeps all locations, and marks those that are no candidates by a negative
score.

Legend: N images, R locations over all levels, K classes, D detections of an image at most.
"""

import copy
from typing import cast

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor, nn
from torch.nn import functional as F

from clq.export.suppression import after_nms, after_nms_op
from clq.modeling.head.feature_alignment import FeatureAlignment
from clq.modeling.meta_arch.clq import CLQ, flatten
from clq.modeling.optimize.fold_bn import fold_batch_norms
from clq.modeling.structures import FlatPredictions

# Names of the graph's inputs and outputs.
INPUTS = ("images", "sizes")
QUALITY_OUTPUTS = ("cls_scores", "predicted_iou")
ALIGNMENTS = ("grid_sample", "deform_conv")


class DetectorGraph(nn.Module):
    """A detector whose inputs and outputs are tensors.

    Args:
        model: detector in eval mode; it is copied.
        alignment: form of its deformable convolutions in the head, ``grid_sample`` (operators that every runtime has)
            or ``deform_conv`` (one operator, which few runtimes have).
        raw: whether the outputs are those of all locations, without threshold and NMS.
        onnx: whether NMS is the operator that is translated to ONNX's own.
    """

    def __init__(self, model: CLQ, *, alignment: str = "grid_sample", raw: bool = False, onnx: bool = False):
        super().__init__()
        self.model = cast(CLQ, fold_batch_norms(copy.deepcopy(model).eval()))
        for module in self.model.modules():
            if isinstance(module, FeatureAlignment):
                module.backend = "torchvision" if alignment == "deform_conv" else alignment
        self.raw = raw
        self.after_nms = after_nms_op if onnx else after_nms

    def output_names(self) -> tuple[str, ...]:
        """Names of what :meth:`forward` returns."""
        names = ("boxes", "scores") if self.raw else ("boxes", "scores", "labels", "counts")
        return names + QUALITY_OUTPUTS if _has_quality(self.model) else names

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Detects objects.

        Args:
            images: pixels (N, 3, H, W) float32 from 0 to 255, not normalized, each image at the top left.
            sizes: height and width (N, 2) int64 of each image without its padding.

        Returns:
            ``boxes`` (N, D, 4), XYXY in pixels of ``images``, ``scores`` (N, D), ``labels`` (N, D) int64 and ``counts``
            (N,) int64, the number of detections, best first; from there on, boxes and scores are 0 and labels -1.
            Where there is a quality branch, ``cls_scores`` and ``predicted_iou`` (N, D) follow. Raw outputs are
            ``boxes`` (N, R, 4), clipped to their image, and ``scores`` (N, R, K), with ``cls_scores`` (N, R, K) and
            ``predicted_iou`` (N, R).
        """
        pixels = self._network_input(images, sizes)
        predictions = self.model.predict(pixels)
        flat = flatten(predictions)
        grids = [level.shape[-2:] for level in predictions.cls_logits]
        boxes = self._boxes(flat, grids, sizes)
        rule = self.model.score
        scores = rule.final(flat.cls_logits, flat.quality_logits).log_p.exp()
        parts: tuple[Tensor, ...] = ()
        if flat.quality_logits is not None:
            parts = flat.cls_logits.float().sigmoid(), flat.quality_logits.squeeze(-1).float().sigmoid()
        if self.raw:
            return boxes, scores, *parts
        filtered = scores if rule.joint else rule.trained(flat.cls_logits, flat.quality_logits).log_p.exp()
        candidates = self._candidates(filtered, boxes, [h * w for h, w in grids])
        return self._detections(boxes, torch.where(candidates, scores, -1.0), parts)

    def _network_input(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Normalizes images, and pads them by zeros to a multiple of the backbone's divisor."""
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device).view(1, 1, -1, 1) < sizes[:, 0].view(-1, 1, 1, 1)
        columns = torch.arange(width, device=images.device).view(1, 1, 1, -1) < sizes[:, 1].view(-1, 1, 1, 1)
        pixels = (images - self.model.pixel_mean) / self.model.pixel_std * (rows & columns)
        divisor = max(self.model.backbone.size_divisibility, 1)
        # In this form the tracer knows that the padded size is a multiple of the divisor; otherwise it takes longer.
        right, below = ((n + divisor - 1) // divisor * divisor - n for n in (width, height))
        return F.pad(pixels, (0, right, 0, below))

    def _boxes(self, flat: FlatPredictions, grids: list, sizes: Tensor) -> Tensor:
        """Boxes (N, R, 4) of all locations, clipped to their images."""
        model, device = self.model, flat.box_pred.device
        generator = cast(DefaultAnchorGenerator, model.anchor_generator)
        anchors, strides = [], []
        for (h, w), stride, cell in zip(grids, model.strides, generator.cell_anchors, strict=True):
            y, x = ((torch.arange(n, device=device) + generator.offset) * stride for n in (h, w))
            centers = torch.stack((x.expand(h, w), y.view(-1, 1).expand(h, w)), dim=-1).flatten(0, 1)
            anchors.append(centers.repeat(1, 2) + cell)
            strides.append(torch.full_like(centers[:, 0], stride))
        boxes = model.coder.decode(flat.box_pred, torch.cat(anchors), torch.cat(strides))
        limit = sizes.flip(1).repeat(1, 2).to(boxes).unsqueeze(1)  # (N, 1, 4) width, height, width, height
        return torch.minimum(boxes.clamp(min=0), limit)

    def _candidates(self, scores: Tensor, boxes: Tensor, sizes: list) -> Tensor:
        """(N, R, K) bool: what :meth:`DetectionSelector.candidates` keeps, less boxes without area where it drops them.

        Args:
            scores: scores (N, R, K) by which candidates are filtered.
            boxes: decoded boxes (N, R, 4).
            sizes: numbers of locations of the levels.
        """
        selector = self.model.selector
        above = scores > selector.score_thresh
        ranked = scores.amax(dim=2) if selector.count_locations else scores.flatten(1)
        per_location = 1 if selector.count_locations else scores.shape[2]
        levels = ranked.split([size * per_location for size in sizes], dim=1)
        best = torch.cat([_among_best(level, selector.topk_candidates) for level in levels], dim=1)
        candidates = above & best.view(*scores.shape[:2], per_location)
        if selector.count_locations:
            return candidates
        return candidates & _has_area(boxes).unsqueeze(-1)

    def _detections(self, boxes: Tensor, scores: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The detections of each image, from boxes (N, R, 4) and the scores (N, R, K) of candidates."""
        most, (n, _, k) = self.model.selector.max_detections, scores.shape
        kept = self.after_nms(boxes, scores, self.model.selector.nms_thresh)
        # Small images have fewer pairs than an image may have detections.
        top, pair = torch.cat((kept.flatten(1), kept.new_full((n, most), -1.0)), dim=1).topk(most)
        location, label = pair // k, pair % k
        box = boxes.gather(1, location.clamp(max=boxes.shape[1] - 1).unsqueeze(-1).expand(-1, -1, 4))
        # As the detector's last step, boxes without area go, and the others move up. They count in the limit.
        valid = (top >= 0) & _has_area(box)
        place = torch.arange(most, device=top.device)
        order = torch.where(valid, place, place + most).topk(most, largest=False).indices
        valid = valid.gather(1, order)
        location, label = (torch.where(valid, x.gather(1, order), 0) for x in (location, label))
        found = [
            box.gather(1, order.unsqueeze(-1).expand(-1, -1, 4)) * valid.unsqueeze(-1),
            top.gather(1, order) * valid,
            torch.where(valid, label, -1),
            valid.sum(dim=1),
        ]
        if parts:
            found += [parts[0].flatten(1).gather(1, location * k + label) * valid, parts[1].gather(1, location) * valid]
        return tuple(found)


def _among_best(scores: Tensor, number: int) -> Tensor:
    """(N, S) bool: whether each of the scores (N, S), at least -1, is among the ``number`` best of its row."""
    padded = torch.cat((scores, scores.new_full((scores.shape[0], number), -1.0)), dim=1)  # so that there are enough
    best = padded.topk(number).indices
    return torch.zeros_like(padded).scatter(1, best, 1.0)[:, : scores.shape[1]] > 0


def _has_area(boxes: Tensor) -> Tensor:
    """(...) bool: whether boxes (..., 4) have an area."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def _has_quality(model: CLQ) -> bool:
    heads = getattr(model.head, "heads", [model.head])
    return heads[0].quality_pred is not None
