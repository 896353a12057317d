"""The meta-architecture ``CLQ``: one dense detector whose row of parts is chosen by the config.

Legend: N images, L levels, R locations over all levels, K classes, M ground truths of one image.
"""

import functools
from collections.abc import Callable

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from clq.errors import UserError, blamed_on
from clq.modeling.assign.atss import ATSSMatcher, to_device_async
from clq.modeling.assign.targets import make_targets, valid_location_mask
from clq.modeling.assign.task_aligned import TaskAlignedPhase
from clq.modeling.build import (
    build_coder,
    build_head,
    build_loss,
    build_quality,
    build_selector,
    build_task_aligned,
    pyramid_shapes,
)
from clq.modeling.criterion import DetectionLoss
from clq.modeling.optimize.checkpointing import checkpoint_stages, checkpointed
from clq.modeling.postprocess import DetectionSelector, moved_to_image
from clq.modeling.ranges import check_ranges
from clq.modeling.scoring import ScoreRule
from clq.modeling.structures import Predictions


@META_ARCH_REGISTRY.register()
class CLQ(DenseDetector):
    """One-stage detector; CLQ, ATSS, GFL, GFLv2, VFNet, TOOD and their ablations differ in the arguments alone.

    Args:
        backbone: with FPN; must follow Detectron2's backbone interface.
        head: from features to :class:`~clq.modeling.structures.Predictions`.
        head_in_features: names of the FPN levels, fine to coarse.
        anchor_generator: one anchor per location, on the head's levels.
        matcher: from grids and ground truths to matched indices (:class:`~clq.modeling.assign.atss.ATSSMatcher`).
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
        self.compiled = compiled

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
            checkpoint_stages(backbone)
        shapes = pyramid_shapes(backbone, c.IN_FEATURES)
        strides = [s.stride for s in shapes]
        coder, quality = build_coder(cfg), build_quality(cfg)
        score = ScoreRule(quality.alpha, quality.joint, quality.cls_alpha) if quality else ScoreRule()
        sizes = [[c.ANCHOR_SCALE * stride] for stride in strides]
        return {
            "backbone": backbone,
            "head": build_head(cfg, shapes, coder, quality),
            "head_in_features": c.IN_FEATURES,
            "anchor_generator": DefaultAnchorGenerator(
                sizes=sizes, aspect_ratios=[[1.0]], strides=strides, offset=c.ANCHOR_OFFSET
            ),
            "matcher": ATSSMatcher(c.TOPK, c.ANCHOR_SCALE, c.ANCHOR_OFFSET),
            "loss": build_loss(cfg, coder, quality, score),
            "selector": build_selector(cfg, coder, score),
            "task_aligned": build_task_aligned(cfg, coder, quality, score),
            "num_parts": cfg.SOLVER.ACCUMULATE,
            "compiled": c.COMPILE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """As in Detectron2, but that backbone and head may be compiled, and a training batch go through them in parts.

        The parts are padded alike, their outputs joined, and the losses are those of the whole batch, matching and
        normalisers included. In the backward pass each part is computed again when its turn comes, so that at any time
        the intermediate results of one part alone are in memory.
        """
        images = self.preprocess_image(batched_inputs)
        if not self.training:
            predictions = self.predict(images.tensor)
            found = self.forward_inference(images, predictions.cls_logits, predictions)
            return [{"instances": moved_to_image(*pair)} for pair in zip(found, batched_inputs, strict=True)]
        assert "instances" in batched_inputs[0], "Instance annotations are missing in training!"
        # Before the network runs: a copy to a GPU waits for what is queued there.
        gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
        predictions = self.predict(images.tensor) if self.num_parts == 1 else self._predict_in_parts(images.tensor)
        return self.forward_training(images, predictions.cls_logits, predictions, gt_instances)

    def predict(self, images: Tensor) -> Predictions:
        """Raw outputs for images (N, 3, H, W)."""
        if not self.compiled:
            return _raw_outputs(self, images)
        # CUDA graphs save the launching of kernels one by one, where it counts: in inference, one image at a time.
        graphs = images.is_cuda and not self.training
        if not graphs:
            return _compiled("default")(self, images)
        torch.compiler.cudagraph_mark_step_begin()
        predictions = _compiled("reduce-overhead")(self, images)
        # They lie in memory of the graph's own, which the next images overwrite.
        return Predictions(*([x.clone() for x in levels] for levels in predictions))

    def _predict_in_parts(self, images: Tensor) -> Predictions:
        """:meth:`predict`, the images in parts, one after the other."""
        parts = [checkpointed(self, self.predict, x) for x in images.chunk(self.num_parts)]
        fields = zip(*parts, strict=True)  # each a tuple over parts of lists over levels
        return Predictions(*([torch.cat(level) for level in zip(*field, strict=True)] for field in fields))

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: Predictions, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """Losses of a batch; see :class:`~clq.modeling.criterion.DetectionLoss`.

        Of the features, here and in :meth:`forward_inference`, the sizes alone count: :meth:`forward` gives the class
        logits, (N, K, H, W) of each level, in their place.
        """
        anchors = Boxes.cat(self.anchor_generator(features)).tensor
        grid_sizes = [tuple(f.shape[-2:]) for f in features]
        strides = torch.cat([anchors.new_full((h * w,), s) for (h, w), s in zip(grid_sizes, self.strides, strict=True)])
        valid_sizes = self._valid_sizes(images.image_sizes, grid_sizes)
        valid = valid_location_mask(grid_sizes, to_device_async(valid_sizes, anchors.device))
        predictions = predictions.flatten()
        gt_boxes = [x.gt_boxes.tensor for x in gt_instances]
        gt_classes = [x.gt_classes for x in gt_instances]
        if self._is_task_aligned():
            with torch.no_grad():
                log_scores = self.loss.score.trained(predictions.cls_logits, predictions.quality_logits).log_p
                boxes = self.loss.coder.decode(predictions.box_pred, anchors, strides)
            matcher, loss = self.task_aligned.matcher, self.task_aligned.loss
            matched_idxs, alignment = matcher(log_scores, boxes, anchors, valid, gt_boxes, gt_classes)
        else:
            matcher, loss = self.matcher, self.loss
            matched_idxs, alignment = self.matcher(grid_sizes, self.strides, gt_boxes, valid_sizes)[0], None
        most = matcher.max_positives(sum(map(len, gt_boxes)), len(grid_sizes))
        where = {"anchors": anchors, "valid": valid, "max_positives": most, "alignment": alignment}
        return loss(predictions, make_targets(matched_idxs, gt_boxes, gt_classes, **where), anchors, strides)

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
        predictions = self.predict(images.tensor)
        return self._candidates(images, predictions.cls_logits, predictions)

    def _candidates(self, images: ImageList, features: list[Tensor], predictions: Predictions) -> list[Instances]:
        anchors = [a.tensor for a in self.anchor_generator(features)]
        return [
            self.selector.candidates(predictions.of_image(i), anchors, self.strides, size)
            for i, size in enumerate(images.image_sizes)
        ]


def _raw_outputs(model: CLQ, images: Tensor) -> Predictions:
    features = model.backbone(images)
    return model.head([features[f] for f in model.head_in_features])


@functools.cache
def _compiled(mode: str) -> Callable[[CLQ, Tensor], Predictions]:
    """:func:`_raw_outputs` compiled by torch: a function, so weights keep their names, and models can be copied."""
    return torch.compile(_raw_outputs, mode=mode)
