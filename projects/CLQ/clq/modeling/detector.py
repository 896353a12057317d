"""The meta-architecture ``CLQ``: one dense detector whose row of parts is chosen by the config.

Legend: N images, L levels, R locations over all levels, K classes, M ground truths of one image.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from clq.errors import UserError, blamed_on
from clq.modeling.criterion import DetectionLoss, Targets
from clq.modeling.head import Predictions
from clq.modeling.matcher import ATSSMatcher
from clq.modeling.postprocess import DetectionSelector
from clq.modeling.ranges import check_ranges
from clq.modeling.recompute import recompute_stages, recomputed
from clq.modeling.rows import build_coder, build_head, build_loss, build_quality, build_task_aligned, pyramid_shapes
from clq.modeling.scoring import ScoreRule
from clq.modeling.task_aligned import TaskAlignedPhase


@META_ARCH_REGISTRY.register()
class CLQ(DenseDetector):
    """One-stage detector; CLQ, ATSS, GFL, GFLv2, VFNet, TOOD and their ablations differ in the arguments alone.

    Args:
        backbone: with FPN; must follow Detectron2's backbone interface.
        head: from features to :class:`~clq.modeling.head.Predictions`.
        head_in_features: names of the FPN levels, fine to coarse.
        anchor_generator: one anchor per location, on the head's levels.
        matcher: from grids and ground truths to matched indices (:class:`~clq.modeling.matcher.ATSSMatcher`).
        loss: from predictions and targets to the dict of losses.
        selector: from predictions of one image to its detections.
        task_aligned: what takes the place of matcher and loss from some iteration on, or None.
        num_parts: a training batch goes through backbone and head in so many parts, see :meth:`forward`.
        compiled: backbone and head are compiled by torch when first called.
        pixel_mean, pixel_std: see :class:`DenseDetector`.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: nn.Module,
        head_in_features: list[str],
        anchor_generator: nn.Module,
        matcher: ATSSMatcher,
        loss: DetectionLoss,
        selector: DetectionSelector,
        task_aligned: TaskAlignedPhase | None = None,
        num_parts: int = 1,
        compiled: bool = False,
        pixel_mean: list[float],
        pixel_std: list[float],
    ):
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.strides = [backbone.output_shape()[f].stride for f in head_in_features]
        self.anchor_generator = anchor_generator
        self.matcher = matcher
        self.loss = loss
        self.selector = selector
        self.task_aligned = task_aligned
        self.num_parts = num_parts
        if compiled:  # in place: as modules around these, they would change the names of all weights
            self.backbone.compile()
            self.head.compile()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """The row of parts that a config names.

        Raises:
            UserError: a part or a setting of one that does not exist.
        """
        check_ranges(cfg)
        c = cfg.MODEL.CLQ
        with blamed_on("MODEL.BACKBONE, RESNETS, SHUFFLENET and FPN"):
            backbone = build_backbone(cfg)
        if c.CHECKPOINT_BACKBONE:
            if c.COMPILE:  # torch's tracer does not follow what keeps running statistics still
                raise UserError("MODEL.CLQ.CHECKPOINT_BACKBONE: does not go with MODEL.CLQ.COMPILE; set one to False.")
            recompute_stages(backbone)
        shapes = pyramid_shapes(backbone, c.IN_FEATURES)
        strides = [s.stride for s in shapes]
        coder, quality = build_coder(cfg), build_quality(cfg)
        score = ScoreRule(quality.alpha, quality.joint, quality.cls_alpha) if quality else ScoreRule()
        sizes = [[c.ANCHOR_SCALE * stride] for stride in strides]
        limits = c.SCORE_THRESH, c.TOPK_CANDIDATES, c.NMS_THRESH, cfg.TEST.DETECTIONS_PER_IMAGE
        return {
            "backbone": backbone,
            "head": build_head(cfg, shapes, coder, quality),
            "head_in_features": c.IN_FEATURES,
            "anchor_generator": DefaultAnchorGenerator(
                sizes=sizes, aspect_ratios=[[1.0]], strides=strides, offset=c.ANCHOR_OFFSET
            ),
            "matcher": ATSSMatcher(c.TOPK, c.ANCHOR_SCALE, c.ANCHOR_OFFSET),
            "loss": build_loss(cfg, coder, quality, score),
            "selector": DetectionSelector(score, coder, *limits),
            "task_aligned": build_task_aligned(cfg, coder, quality, score),
            "num_parts": cfg.SOLVER.ACCUMULATE,
            "compiled": c.COMPILE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """As in Detectron2, but that a training batch may go through backbone and head in parts.

        The parts are padded alike, their outputs joined, and the losses are those of the whole batch, matching and
        normalisers included. In the backward pass each part is computed again when its turn comes, so that at any time
        the intermediate results of one part alone are in memory.
        """
        if not self.training or self.num_parts == 1:
            return super().forward(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        parts = [recomputed(self, self._predict, x) for x in images.tensor.chunk(self.num_parts)]
        fields = zip(*parts, strict=True)  # each a tuple over parts of lists over levels
        predictions = Predictions(*([torch.cat(level) for level in zip(*field, strict=True)] for field in fields))
        gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
        # Of the features, the losses need the sizes alone.
        return self.forward_training(images, predictions.cls_logits, predictions, gt_instances)

    def _predict(self, images: Tensor) -> Predictions:
        """Raw outputs for images (N, 3, H, W)."""
        features = self.backbone(images)
        return self.head([features[f] for f in self.head_in_features])

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: Predictions, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """Losses of a batch; see :class:`~clq.modeling.criterion.DetectionLoss`."""
        anchors = Boxes.cat(self.anchor_generator(features)).tensor
        grid_sizes = [tuple(f.shape[-2:]) for f in features]
        strides = torch.cat([anchors.new_full((h * w,), s) for (h, w), s in zip(grid_sizes, self.strides, strict=True)])
        valid_sizes = self._valid_sizes(images.image_sizes, grid_sizes)
        valid = _covered(grid_sizes, valid_sizes.to(images.device))
        predictions = predictions.flatten()
        gt_boxes = [x.gt_boxes.tensor for x in gt_instances]
        gt_classes = [x.gt_classes for x in gt_instances]
        if self._is_task_aligned():
            with torch.no_grad():
                log_scores = self.loss.score.trained(predictions.cls_logits, predictions.quality_logits).log_p
                boxes = self.loss.coder.decode(predictions.box_pred, anchors, strides)
            matched = self.task_aligned.matcher(log_scores, boxes, anchors, valid, gt_boxes, gt_classes)
            return self.task_aligned.loss(
                predictions, _targets(*matched, gt_boxes, gt_classes, valid), anchors, strides
            )
        matched_idxs, _ = self.matcher(grid_sizes, self.strides, gt_boxes, valid_sizes)
        return self.loss(predictions, _targets(matched_idxs, None, gt_boxes, gt_classes, valid), anchors, strides)

    def _is_task_aligned(self) -> bool:
        # The trainer's own count of iterations: it is right after a resume, and no hook has to tell the model.
        phase = self.task_aligned
        return phase is not None and (phase.start == 0 or get_event_storage().iter >= phase.start)

    def _valid_sizes(self, image_sizes: list[tuple[int, int]], grid_sizes: list[tuple[int, int]]) -> Tensor:
        """(N, L, 2) rows and columns of each level within the image's own size rounded up to the backbone's padding."""
        multiple = max(self.backbone.size_divisibility, 1)
        padded = (torch.tensor([tuple(s) for s in image_sizes]) + multiple - 1) // multiple * multiple  # (N, 2)
        strides = torch.tensor(self.strides).view(1, -1, 1)
        return ((padded[:, None] + strides - 1) // strides).minimum(torch.tensor(grid_sizes))

    def forward_inference(self, images: ImageList, features: list[Tensor], predictions: Predictions) -> list[Instances]:
        """Detections of each image, in pixels of the network's input."""
        return [self.selector.select(x) for x in self._candidates(images, features, predictions)]

    @torch.no_grad()
    def candidates(self, batched_inputs: list[dict]) -> list[Instances]:
        """What inference selects the detections of each image from, in pixels of the network's input.

        Args:
            batched_inputs: as of :meth:`forward`.

        Returns:
            Of each image, see :meth:`~clq.modeling.postprocess.DetectionSelector.candidates`.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        features = [features[f] for f in self.head_in_features]
        return self._candidates(images, features, self.head(features))

    def _candidates(self, images: ImageList, features: list[Tensor], predictions: Predictions) -> list[Instances]:
        anchors = [a.tensor for a in self.anchor_generator(features)]
        return [
            self.selector.candidates(predictions.of_image(i), anchors, self.strides, size)
            for i, size in enumerate(images.image_sizes)
        ]


@torch.no_grad()
def _targets(
    matched_idxs: Tensor, alignment: Tensor | None, gt_boxes: list[Tensor], gt_classes: list[Tensor], valid: Tensor
) -> Targets:
    """Targets of a batch from its matches (N, R) and, if these are task-aligned, alignments (N, R)."""
    positive = matched_idxs >= 0
    image, location = positive.nonzero(as_tuple=True)
    first = torch.tensor([0] + [len(b) for b in gt_boxes[:-1]], device=image.device).cumsum(0)
    index = matched_idxs[image, location] + first[image]
    return Targets(
        image=image,
        location=location,
        gt_boxes=torch.cat(gt_boxes)[index],
        gt_classes=torch.cat(gt_classes)[index],
        valid=valid,
        num_pos=positive.sum(dim=1).clamp(min=1).sum().float() if alignment is None else alignment.sum(),
        alignment=None if alignment is None else alignment[image, location],
    )


def _covered(grid_sizes: list[tuple[int, int]], valid_sizes: Tensor) -> Tensor:
    """(N, R) bool: locations within the first (rows, columns) = ``valid_sizes`` (N, L, 2) of each level's grid."""
    device = valid_sizes.device
    masks = []
    for (h, w), valid in zip(grid_sizes, valid_sizes.unbind(dim=1), strict=True):
        rows = torch.arange(h, device=device) < valid[:, :1]  # (N, H)
        columns = torch.arange(w, device=device) < valid[:, 1:]  # (N, W)
        masks.append((rows[:, :, None] & columns[:, None]).flatten(1))
    return torch.cat(masks, dim=1)
