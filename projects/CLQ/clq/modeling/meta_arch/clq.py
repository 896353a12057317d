"""The meta-architecture ``CLQ``: one dense detector, whose parts the config chooses.

Legend: N images, L levels, R locations over all levels, K classes, M ground truths of one image.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from clq.errors import UserError, blamed_on
from clq.modeling.assign.atss import to_device_async
from clq.modeling.assign.base import Assigner, AssignmentInputs
from clq.modeling.box_coding import BoxCoder
from clq.modeling.build import (
    build_assigner,
    build_coder,
    build_head,
    build_loss,
    build_quality,
    build_selector,
    pyramid_shapes,
)
from clq.modeling.by_iteration import ByIteration
from clq.modeling.criterion import DetectionLoss, make_targets
from clq.modeling.optimize.checkpointing import checkpoint_stages, checkpointed
from clq.modeling.optimize.compiling import call_compiled
from clq.modeling.postprocess import DetectionSelector, moved_to_image
from clq.modeling.ranges import check_ranges
from clq.modeling.scoring import ScoreRule
from clq.modeling.structures import FlatPredictions, Predictions


@META_ARCH_REGISTRY.register()
class CLQ(DenseDetector):
    """A one-stage detector. CLQ, ATSS, GFL, GFLv2, VFNet, TOOD, NanoDet and their ablations differ in its parts only.

    It follows Detectron2's interface of models. The input is a list of dicts, one for each image:

    * ``image``: uint8 or float tensor (3, H, W) in the channel order of ``INPUT.FORMAT``;
    * ``instances`` (training): :class:`Instances` with ``gt_boxes`` (M, 4), XYXY in pixels of ``image``, and
      ``gt_classes`` (M,) in [0, K);
    * ``height``, ``width`` (inference, optional): size of the original image, to which the detections are scaled.

    In training it returns a dict of scalar losses: ``loss_cls`` and ``loss_box``, and, where the variant has them,
    ``loss_dfl`` (distribution coding), ``loss_quality`` (quality branch) and ``loss_box_coarse`` (VFNet). In inference
    it returns a list of dicts, one for each image, whose ``instances`` have ``pred_boxes``, ``scores`` (final),
    ``pred_classes``, ``levels`` and ``locations`` (where they were predicted: the index of the FPN level, and the index
    within it, row-major) and, where there is a quality branch, ``cls_scores`` and ``pred_quality``. Detections are
    sorted by score.

    For example::

        cfg = clq.setup_cfg("configs/CLQ/clq_R_50_FPN_1x.yaml", ["MODEL.CLQ.NUM_CLASSES", 80])
        model = build_model(cfg)
        DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        image = torch.from_numpy(read_image("street.jpg", cfg.INPUT.FORMAT).transpose(2, 0, 1).copy())
        with torch.no_grad():
            found = model.eval()([{"image": image}])[0]["instances"]

    Args:
        backbone: backbone with FPN, after Detectron2's interface.
        head: module from FPN features to :class:`~clq.modeling.structures.Predictions`.
        head_in_features: names of the FPN levels that the head reads, fine to coarse.
        anchor_generator: generator of one anchor per location.
        coder: box coder of the head.
        score: rule by which scores are formed.
        assigner: assigner of ground truths to locations.
        loss: function from predictions and targets to the dict of losses.
        selector: selector of detections among the predictions.
        num_parts: number of parts in which a training batch goes through backbone and head, see :meth:`forward`.
        compiled: whether torch compiles backbone and head at their first call.
        pixel_mean: mean of each channel, see :class:`DenseDetector`.
        pixel_std: standard deviation of each channel, see :class:`DenseDetector`.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str],
        anchor_generator: nn.Module,
        coder: BoxCoder,
        score: ScoreRule,
        assigner: Assigner,
        loss: DetectionLoss | ByIteration[DetectionLoss],
        selector: DetectionSelector,
        num_parts: int = 1,
        compiled: bool = False,
        pixel_mean: list[float],
        pixel_std: list[float],
    ):
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.strides = [backbone.output_shape()[f].stride for f in head_in_features]
        self.anchor_generator = anchor_generator
        self.coder = coder
        self.score = score
        self.assigner = assigner
        self.loss = loss
        self.selector = selector
        self.num_parts = num_parts
        self.compiled = compiled

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """The parts that a config names.

        Raises:
            UserError: a part does not exist, or refuses its settings.
        """
        check_ranges(cfg)
        c = cfg.MODEL.CLQ
        with blamed_on("MODEL.BACKBONE, RESNETS, SHUFFLENET and FPN"):
            backbone = build_backbone(cfg)
        if c.CHECKPOINT_BACKBONE:
            if c.COMPILE:  # torch's tracer cannot follow the context that keeps running statistics unchanged
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
            "coder": coder,
            "score": score,
            "assigner": build_assigner(cfg),
            "loss": build_loss(cfg, coder, quality, score),
            "selector": build_selector(cfg, coder, score),
            "num_parts": cfg.SOLVER.ACCUMULATE,
            "compiled": c.COMPILE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses or detections of a batch; see the class for inputs and outputs.

        With ``num_parts`` above 1, the images of a training batch go through backbone and head in that many parts, one
        after the other. All parts are padded to the same size and their outputs are joined, so the losses are those of
        the whole batch, assignment and normalizers included. The backward pass computes each part again when its turn
        comes, so that the intermediate results of only one part are in memory at any time.
        """
        images = self.preprocess_image(batched_inputs)
        if not self.training:
            found = self.forward_inference(images, None, self.predict(images.tensor))
            return [{"instances": moved_to_image(*pair)} for pair in zip(found, batched_inputs, strict=True)]
        assert "instances" in batched_inputs[0], "Instance annotations are missing in training!"
        # Before the network runs, because a copy to a GPU waits for what is queued there.
        gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
        predictions = self.predict(images.tensor) if self.num_parts == 1 else self._predict_in_parts(images.tensor)
        return self.forward_training(images, None, predictions, gt_instances)

    def predict(self, images: Tensor) -> Predictions:
        """Raw outputs for network inputs (N, 3, H, W)."""
        return call_compiled(_network, self, images) if self.compiled else _network(self, images)

    def _predict_in_parts(self, images: Tensor) -> Predictions:
        """:meth:`predict` for one part of the images after the other."""
        parts = [checkpointed(self, self.predict, x) for x in images.chunk(self.num_parts)]
        fields = zip(*parts, strict=True)  # each a tuple over parts of lists over levels
        return Predictions(*([torch.cat(level) for level in zip(*field, strict=True)] for field in fields))

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor] | None,
        predictions: Predictions,
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Losses of a batch; see :class:`~clq.modeling.criterion.DetectionLoss`.

        Args:
            images: network inputs, padded to one size.
            features: not used; an argument of :class:`DenseDetector`'s interface.
            predictions: raw outputs of the head.
            gt_instances: ground truths of each image, in pixels of the network's input.
        """
        anchors = Boxes.cat(self.anchor_generator(predictions.cls_logits)).tensor
        grid_sizes = [(x.shape[-2], x.shape[-1]) for x in predictions.cls_logits]
        strides = torch.cat([anchors.new_full((h * w,), s) for (h, w), s in zip(grid_sizes, self.strides, strict=True)])
        valid_sizes = self._valid_sizes(images.image_sizes, grid_sizes)
        inputs = AssignmentInputs(
            grid_sizes=grid_sizes,
            strides=self.strides,
            anchors=anchors,
            location_strides=strides,
            valid_sizes=valid_sizes,
            valid=valid_location_mask(grid_sizes, to_device_async(valid_sizes, anchors.device)),
            gt_boxes=[x.gt_boxes.tensor for x in gt_instances],
            gt_classes=[x.gt_classes for x in gt_instances],
            predictions=flatten(predictions),
            coder=self.coder,
            score=self.score,
        )
        targets = make_targets(
            self.assigner(inputs), inputs.gt_boxes, inputs.gt_classes, anchors=anchors, valid=inputs.valid
        )
        return self.loss(inputs.predictions, targets, anchors, strides)

    def _valid_sizes(self, image_sizes: list[tuple[int, int]], grid_sizes: list[tuple[int, int]]) -> Tensor:
        """(N, L, 2) rows and columns of each level within the image's own size rounded up to the backbone's padding."""
        multiple = max(self.backbone.size_divisibility, 1)
        padded = (torch.tensor([tuple(s) for s in image_sizes]) + multiple - 1) // multiple * multiple  # (N, 2)
        strides = torch.tensor(self.strides).view(1, -1, 1)
        return ((padded[:, None] + strides - 1) // strides).minimum(torch.tensor(grid_sizes))

    def forward_inference(
        self, images: ImageList, features: list[Tensor] | None, predictions: Predictions
    ) -> list[Instances]:
        """Detections of each image, in pixels of the network's input.

        Args:
            images: network inputs, padded to one size.
            features: not used; an argument of :class:`DenseDetector`'s interface.
            predictions: raw outputs of the head.
        """
        return [self.selector.select(x) for x in self._candidates(images, predictions)]

    @torch.no_grad()
    def candidates(self, batched_inputs: list[dict]) -> list[Instances]:
        """The candidates of each image, from which inference selects its detections, in pixels of the network's input.

        Args:
            batched_inputs: inputs of :meth:`forward`.

        Returns:
            For each image, see :meth:`~clq.modeling.postprocess.DetectionSelector.candidates`.
        """
        images = self.preprocess_image(batched_inputs)
        return self._candidates(images, self.predict(images.tensor))

    def _candidates(self, images: ImageList, predictions: Predictions) -> list[Instances]:
        anchors = [a.tensor for a in self.anchor_generator(predictions.cls_logits)]
        return [
            self.selector.candidates(predictions.of_image(i), anchors, self.strides, size)
            for i, size in enumerate(images.image_sizes)
        ]


def _network(model: CLQ, images: Tensor) -> Predictions:
    features = model.backbone(images)
    return model.head([features[f] for f in model.head_in_features])


def flatten(predictions: Predictions) -> FlatPredictions:
    """Joins the levels of raw outputs over their locations, row-major within a level."""

    def join(levels: list[Tensor]) -> Tensor:
        return torch.cat([x.flatten(2).transpose(1, 2) for x in levels], dim=1)

    cls_logits, box_pred, quality_logits, coarse_box_pred = predictions
    return FlatPredictions(
        join(cls_logits),
        join(box_pred),
        join(quality_logits) if quality_logits else None,
        join(coarse_box_pred) if coarse_box_pred else None,
    )


def valid_location_mask(grid_sizes: list[tuple[int, int]], valid_sizes: Tensor) -> Tensor:
    """(N, R) bool: True within the first (rows, columns) = ``valid_sizes`` (N, L, 2) of each level's grid (H, W)."""
    device = valid_sizes.device
    masks = []
    for (h, w), valid in zip(grid_sizes, valid_sizes.unbind(dim=1), strict=True):
        rows = torch.arange(h, device=device) < valid[:, :1]  # (N, H)
        columns = torch.arange(w, device=device) < valid[:, 1:]  # (N, W)
        masks.append((rows[:, :, None] & columns[:, None]).flatten(1))
    return torch.cat(masks, dim=1)
