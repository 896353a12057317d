"""Builds the parts of a detector from its config: one function for each slot, with the names of the parts that fit."""

from collections.abc import Callable
from functools import partial

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone

from clq.data.num_classes import resolve_num_classes
from clq.errors import UserError
from clq.modeling.assign.atss import ATSSAssigner
from clq.modeling.assign.base import Assigner
from clq.modeling.assign.max_iou import MaxIoUAssigner
from clq.modeling.assign.simota import SimOTAAssigner
from clq.modeling.assign.task_aligned import TaskAlignedAssigner
from clq.modeling.box_coding import BoxCoder, DeltaCoder, DistributionCoder, LinearDistanceCoder, LogDistanceCoder
from clq.modeling.by_iteration import ByIteration, Part
from clq.modeling.criterion import (
    DetectionLoss,
    weigh_by_alignment_metric,
    weigh_by_centerness,
    weigh_by_iou,
    weigh_by_score,
)
from clq.modeling.head.dense_head import DenseHead, HeadPerLevel
from clq.modeling.head.feature_alignment import FeatureAlignment, GeometricOffsets, LearnedOffsets
from clq.modeling.head.quality import CenternessQuality, DGQPQuality, IoUQuality, Quality, TOODQuality
from clq.modeling.head.refinement import SampledBoxes, StarRefinement
from clq.modeling.head.towers import ACTIVATIONS, Layers, interactive_towers, separate_towers, shared_tower
from clq.modeling.losses import focal_loss, quality_focal_loss, varifocal_loss
from clq.modeling.postprocess import DetectionSelector
from clq.modeling.scoring import ScoreRule


def pyramid_shapes(backbone: Backbone, levels: list[str], key: str = "MODEL.CLQ.IN_FEATURES") -> list[ShapeSpec]:
    """Channels and stride of each level that a detector reads.

    Args:
        backbone: backbone with FPN.
        levels: names of the levels.
        key: config key that holds these names, for the error message.

    Raises:
        UserError: a level does not exist in the backbone, or there is none.
    """
    shapes = backbone.output_shape()
    if not levels or not set(levels) <= set(shapes):
        raise UserError(f"{key} {levels}: name one or more levels of the backbone: {', '.join(shapes)}.")
    return [shapes[level] for level in levels]


def build_coder(cfg: CfgNode) -> BoxCoder:
    """The box coder that ``BOX.CODING`` names."""
    box = cfg.MODEL.CLQ.BOX
    return _choose(
        "BOX.CODING",
        box.CODING,
        delta=partial(DeltaCoder, box.WEIGHTS),
        distance=LogDistanceCoder,
        ltrb=LinearDistanceCoder,
        distribution=partial(DistributionCoder, box.REG_MAX),
    )


def build_quality(cfg: CfgNode) -> Quality | None:
    """The kind of quality that ``QUALITY.NAME`` names, or None."""
    quality = cfg.MODEL.CLQ.QUALITY
    return _choose(
        "QUALITY.NAME",
        quality.NAME,
        none=lambda: None,
        centerness=CenternessQuality,
        iou=partial(IoUQuality, quality.ALPHA, quality.TOWER),
        dgqp=DGQPQuality,
        task=partial(TOODQuality, cfg.MODEL.CLQ.PRIOR_PROB),
    )


def build_head(
    cfg: CfgNode, shapes: list[ShapeSpec], coder: BoxCoder, quality: Quality | None
) -> DenseHead | HeadPerLevel:
    """The head that ``TOWERS``, ``CONV``, ``ALIGN``, ``REFINE`` and ``HEAD_PER_LEVEL`` describe.

    Args:
        cfg: the config.
        shapes: channels and stride of each level that the head reads.
        coder: box coder.
        quality: kind of quality, or None.
    """
    if not cfg.MODEL.CLQ.HEAD_PER_LEVEL:
        return _build_head(cfg, shapes, coder, quality)
    return HeadPerLevel(_build_head(cfg, [shape], coder, quality) for shape in shapes)


def _build_head(cfg: CfgNode, shapes: list[ShapeSpec], coder: BoxCoder, quality: Quality | None) -> DenseHead:
    c = cfg.MODEL.CLQ
    depthwise = _choose("CONV", c.CONV, full=lambda: False, depthwise=lambda: True)
    activation = _choose("ACTIVATION", c.ACTIVATION, **{name: lambda f=f: f for name, f in ACTIVATIONS.items()})
    layers = Layers(c.CONV_DIM, c.NUM_CONVS, c.NORM, depthwise, activation)
    towers = _choose(
        "TOWERS",
        c.TOWERS,
        separate=partial(separate_towers, shapes[0].channels, layers),
        shared=partial(shared_tower, shapes[0].channels, layers),
        interactive=partial(interactive_towers, shapes[0].channels, layers),
    )
    refine = _choose(
        "REFINE.NAME",
        c.REFINE.NAME,
        none=lambda: None,
        star=lambda: StarRefinement(towers.out_channels, len(shapes), c.ALIGN.BACKEND),
        sampling=lambda: SampledBoxes(towers.shared_channels, towers.out_channels),
    )
    if refine is not None and refine.coding != c.BOX.CODING:
        raise UserError(f"MODEL.CLQ.REFINE.NAME {c.REFINE.NAME}: needs MODEL.CLQ.BOX.CODING {refine.coding}.")
    branch = None
    if quality is not None:
        make_branch = partial(quality.branch, coder, towers.shared_channels, towers.out_channels)
        branch = _make(f"QUALITY.NAME {c.QUALITY.NAME}", make_branch)
    head = partial(
        DenseHead,
        towers=towers,
        num_levels=len(shapes),
        num_classes=c.NUM_CLASSES if c.NUM_CLASSES > 0 else resolve_num_classes(cfg),
        coder=coder,
        anchor_scale=c.ANCHOR_SCALE,
        level_scales=c.LEVEL_SCALES,
        prior_prob=c.PRIOR_PROB,
        quality=branch,
        align=_build_align(cfg, towers.shared_channels),
        refine=refine,
        box_norm=c.NORM if c.REFINE.NAME == "star" else None,
        activation=activation,
        pred_size=1 if depthwise else 3,
    )
    return _make("NORM", head)


def _build_align(cfg: CfgNode, channels: int) -> FeatureAlignment | None:
    align = cfg.MODEL.CLQ.ALIGN
    groups = align.OFFSET_GROUPS
    if align.NAME == "learned" and channels % groups:
        raise UserError(
            f"MODEL.CLQ.ALIGN.OFFSET_GROUPS {groups}: must divide the {channels} channels that are aligned "
            "(MODEL.FPN.OUT_CHANNELS, or what a shared tower gives)."
        )
    return _choose(
        "ALIGN.NAME",
        align.NAME,
        none=lambda: None,
        learned=lambda: FeatureAlignment(
            channels, LearnedOffsets(groups, align.GRADIENT, align.OFFSET_STD), align.BACKEND
        ),
        geometric=lambda: FeatureAlignment(channels, GeometricOffsets(align.GRADIENT), align.BACKEND),
    )


def build_assigner(cfg: CfgNode) -> Assigner:
    """The assigner that ``ASSIGN.NAME`` names; TOOD's follows ATSS's in the course of a training."""
    c = cfg.MODEL.CLQ
    a = c.ASSIGN
    atss = ATSSAssigner(c.TOPK, c.ANCHOR_SCALE, c.ANCHOR_OFFSET)
    return _choose(
        "ASSIGN.NAME",
        a.NAME,
        atss=lambda: atss,
        task=lambda: _after_warmup(cfg, atss, TaskAlignedAssigner(a.TASK_TOPK, a.TASK_ALPHA, a.TASK_BETA)),
        simota=lambda: SimOTAAssigner(a.SIMOTA_RADIUS, a.SIMOTA_CANDIDATES, a.SIMOTA_IOU_WEIGHT),
        max_iou=lambda: MaxIoUAssigner(tuple(a.MAX_IOU_THRESHOLDS), a.MAX_IOU_LOW_QUALITY),
    )


def build_loss(
    cfg: CfgNode, coder: BoxCoder, quality: Quality | None, score: ScoreRule
) -> DetectionLoss | ByIteration[DetectionLoss]:
    """The loss that ``CLS``, ``BOX``, ``QUALITY`` and ``REFINE`` describe; TOOD's follows ATSS's like its assigner.

    Raises:
        UserError: a choice does not exist, or needs another one.
    """
    c = cfg.MODEL.CLQ
    loss = _build_loss(cfg, coder, quality, score, class_loss=c.CLS.LOSS, weight_by=c.BOX.WEIGHT_BY)
    if c.ASSIGN.NAME != "task":
        if c.BOX.WEIGHT_BY == "alignment_metric":
            raise UserError(
                "MODEL.CLQ.BOX.WEIGHT_BY alignment_metric: needs MODEL.CLQ.ASSIGN.NAME task, which computes it."
            )
        return loss
    if c.CLS.LOSS == "focal":
        raise UserError(
            "MODEL.CLQ.CLS.LOSS focal: learns 1 and not the alignment metric of ASSIGN.NAME task; set it to qfl or vfl."
        )
    before = _build_loss(cfg, coder, quality, score, class_loss="focal", weight_by="centerness")
    return _after_warmup(cfg, before, loss)


def _after_warmup(cfg: CfgNode, before: Part, after: Part) -> Part | ByIteration[Part]:
    """One part in the first ``ASSIGN.WARMUP`` of the training and another part from then on."""
    start = round(cfg.MODEL.CLQ.ASSIGN.WARMUP * cfg.SOLVER.MAX_ITER)
    return ByIteration(before, after, start) if start else after


def _build_loss(
    cfg: CfgNode, coder: BoxCoder, quality: Quality | None, score: ScoreRule, *, class_loss: str, weight_by: str
) -> DetectionLoss:
    c = cfg.MODEL.CLQ
    class_loss_function = _choose(
        "CLS.LOSS",
        class_loss,
        focal=lambda: partial(focal_loss, alpha=c.CLS.FOCAL_ALPHA, gamma=c.CLS.FOCAL_GAMMA),
        qfl=lambda: partial(quality_focal_loss, beta=c.CLS.BETA),
        vfl=lambda: partial(varifocal_loss, alpha=c.CLS.VFL_ALPHA, gamma=c.CLS.VFL_GAMMA),
    )
    box_weight = _choose(
        "BOX.WEIGHT_BY",
        weight_by,
        none=lambda: None,
        centerness=lambda: weigh_by_centerness,
        score=lambda: weigh_by_score,
        iou=lambda: weigh_by_iou,
        alignment_metric=lambda: weigh_by_alignment_metric,
    )
    return DetectionLoss(
        score,
        coder,
        class_loss_function,
        soft_target=class_loss != "focal",
        quality_target=quality.target if quality else None,
        box_weight=box_weight,
        box_weight_floor=c.BOX.WEIGHT_FLOOR,
        box_loss_weight=c.BOX.LOSS_WEIGHT,
        coarse_loss_weight=c.REFINE.COARSE_LOSS_WEIGHT,
        coder_loss_weight=c.BOX.DFL_WEIGHT,
        quality_loss_weight=c.QUALITY.LOSS_WEIGHT,
    )


def build_selector(cfg: CfgNode, coder: BoxCoder, score: ScoreRule) -> DetectionSelector:
    """The selector that ``SCORE_THRESH``, ``TOPK_CANDIDATES``, ``TOPK_COUNTS`` and ``NMS_THRESH`` describe."""
    c = cfg.MODEL.CLQ
    return DetectionSelector(
        score,
        coder,
        score_thresh=c.SCORE_THRESH,
        topk_candidates=c.TOPK_CANDIDATES,
        nms_thresh=c.NMS_THRESH,
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        count_locations=_choose("TOPK_COUNTS", c.TOPK_COUNTS, pairs=lambda: False, locations=lambda: True),
    )


def _choose(key: str, name: str, **makers):
    """Makes the part that a config key names, from one maker for each name that the table of keys has.

    Raises:
        UserError: the part refuses its settings.
    """
    return _make(f"{key} {name}", makers[name])


def _make(setting: str, maker: Callable):
    try:
        return maker()
    except ValueError as e:
        raise UserError(f"MODEL.CLQ.{setting}: {e}.") from e
