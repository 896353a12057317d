"""From a config to the parts of its row: the slots, and the names of what fits into each."""

from collections.abc import Callable
from functools import partial

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import nn

from clq.data.datasets import resolve_num_classes
from clq.errors import UserError
from clq.modeling.assign.task_aligned import TaskAlignedMatcher, TaskAlignedPhase
from clq.modeling.box_coding import DeltaCoder, DistributionCoder, LinearDistanceCoder, LogDistanceCoder
from clq.modeling.criterion import (
    DetectionLoss,
    weigh_by_alignment_metric,
    weigh_by_centerness,
    weigh_by_iou,
    weigh_by_score,
)
from clq.modeling.head.dense_head import DenseHead, HeadPerLevel
from clq.modeling.head.feature_alignment import FeatureAlignment, GeometricOffsets, LearnedOffsets
from clq.modeling.head.quality import CenternessQuality, DGQPQuality, IoUQuality, TOODQuality
from clq.modeling.head.refinement import SampledBoxes, StarRefinement
from clq.modeling.head.towers import ACTIVATIONS, Layers, interactive_towers, separate_towers, shared_tower
from clq.modeling.losses import focal_loss, quality_focal_loss, varifocal_loss
from clq.modeling.postprocess import DetectionSelector
from clq.modeling.scoring import ScoreRule


def pyramid_shapes(backbone: nn.Module, levels: list[str], key: str = "MODEL.CLQ.IN_FEATURES") -> list[ShapeSpec]:
    """Channels and stride of each level that a detector reads; ``key`` is where they are named.

    Raises:
        UserError: a level that the backbone does not have, or none.
    """
    there = backbone.output_shape()
    if not levels or not set(levels) <= set(there):
        raise UserError(f"{key} {levels}: name one or more that the backbone has: {', '.join(there)}.")
    return [there[level] for level in levels]


def build_coder(cfg: CfgNode):
    """The box coder of ``BOX.CODING``."""
    box = cfg.MODEL.CLQ.BOX
    return _choose(
        "BOX.CODING",
        box.CODING,
        delta=partial(DeltaCoder, box.WEIGHTS),
        distance=LogDistanceCoder,
        ltrb=LinearDistanceCoder,
        distribution=partial(DistributionCoder, box.REG_MAX),
    )


def build_quality(cfg: CfgNode):
    """The kind of quality of ``QUALITY.NAME``, or None."""
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


def build_head(cfg: CfgNode, shapes: list[ShapeSpec], coder, quality) -> DenseHead | HeadPerLevel:
    """The head of ``TOWERS``, ``CONV``, ``ALIGN``, ``REFINE`` and ``HEAD_PER_LEVEL``, on levels of these shapes."""
    if not cfg.MODEL.CLQ.HEAD_PER_LEVEL:
        return _build_head(cfg, shapes, coder, quality)
    return HeadPerLevel(_build_head(cfg, [shape], coder, quality) for shape in shapes)


def _build_head(cfg: CfgNode, shapes: list[ShapeSpec], coder, quality) -> DenseHead:
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
    if quality is not None:
        make_branch = partial(quality.branch, coder, towers.shared_channels, towers.out_channels)
        quality = _make(f"QUALITY.NAME {c.QUALITY.NAME}", make_branch)
    head = partial(
        DenseHead,
        towers=towers,
        num_levels=len(shapes),
        num_classes=c.NUM_CLASSES if c.NUM_CLASSES > 0 else resolve_num_classes(cfg),
        coder=coder,
        anchor_scale=c.ANCHOR_SCALE,
        level_scales=c.LEVEL_SCALES,
        prior_prob=c.PRIOR_PROB,
        quality=quality,
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
        learned=lambda: FeatureAlignment(channels, LearnedOffsets(groups, align.GRADIENT), align.BACKEND),
        geometric=lambda: FeatureAlignment(channels, GeometricOffsets(align.GRADIENT), align.BACKEND),
    )


def build_task_aligned(cfg: CfgNode, coder, quality, score: ScoreRule) -> TaskAlignedPhase | None:
    """The second part of a training of ``ASSIGN``, or None."""
    c = cfg.MODEL.CLQ.ASSIGN
    if c.NAME == "task" and cfg.MODEL.CLQ.CLS.LOSS == "focal":
        raise UserError(
            "MODEL.CLQ.CLS.LOSS focal: learns 1, not the alignments of ASSIGN.NAME task; set it to qfl or vfl."
        )
    return _choose(
        "ASSIGN.NAME",
        c.NAME,
        atss=lambda: None,
        task=lambda: TaskAlignedPhase(
            round(c.WARMUP * cfg.SOLVER.MAX_ITER),
            TaskAlignedMatcher(c.TASK_TOPK, c.TASK_ALPHA, c.TASK_BETA),
            _build_loss(cfg, coder, quality, score, cfg.MODEL.CLQ.CLS.LOSS, cfg.MODEL.CLQ.BOX.WEIGHT_BY),
        ),
    )


def build_loss(cfg: CfgNode, coder, quality, score: ScoreRule) -> DetectionLoss:
    """The loss of ``CLS``, ``BOX``, ``QUALITY`` and ``REFINE``; ATSS's own before a task-aligned phase."""
    c = cfg.MODEL.CLQ
    if c.ASSIGN.NAME == "task":
        return _build_loss(cfg, coder, quality, score, "focal", "centerness")
    if c.BOX.WEIGHT_BY == "alignment":
        raise UserError("MODEL.CLQ.BOX.WEIGHT_BY alignment: needs MODEL.CLQ.ASSIGN.NAME task, which measures it.")
    return _build_loss(cfg, coder, quality, score, c.CLS.LOSS, c.BOX.WEIGHT_BY)


def _build_loss(cfg: CfgNode, coder, quality, score: ScoreRule, class_loss: str, weight_by: str) -> DetectionLoss:
    c = cfg.MODEL.CLQ
    soft_target = class_loss != "focal"
    class_loss = _choose(
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
        alignment=lambda: weigh_by_alignment_metric,
    )
    return DetectionLoss(
        score,
        coder,
        class_loss,
        soft_target=soft_target,
        quality_target=quality and quality.target,
        box_weight=box_weight,
        box_weight_floor=c.BOX.WEIGHT_FLOOR,
        box_loss_weight=c.BOX.LOSS_WEIGHT,
        coarse_loss_weight=c.REFINE.COARSE_LOSS_WEIGHT,
        coder_loss_weight=c.BOX.DFL_WEIGHT,
        quality_loss_weight=c.QUALITY.LOSS_WEIGHT,
    )


def build_selector(cfg: CfgNode, coder, score: ScoreRule) -> DetectionSelector:
    """What picks the detections, by ``SCORE_THRESH``, ``TOPK_CANDIDATES``, ``TOPK_COUNTS`` and ``NMS_THRESH``."""
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
    """Makes the part that a config key names.

    Raises:
        UserError: there is no part of that name, or it refuses its settings.
    """
    if name not in makers:
        raise UserError(f"MODEL.CLQ.{key}: {name} is not one of {', '.join(makers)}.")
    return _make(f"{key} {name}", makers[name])


def _make(setting: str, maker: Callable):
    try:
        return maker()
    except ValueError as e:
        raise UserError(f"MODEL.CLQ.{setting}: {e}.") from e
