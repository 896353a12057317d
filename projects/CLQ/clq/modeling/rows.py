"""From a config to the parts of its row: the slots, and the names of what fits into each."""

from collections.abc import Callable
from functools import partial

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import nn

from clq.data.datasets import resolve_num_classes
from clq.errors import UserError
from clq.modeling.alignment import AlignConv, GeometricOffsets, LearnedOffsets, StarRefinement
from clq.modeling.box_coding import DeltaCoder, DistanceCoder, DistributionCoder
from clq.modeling.criterion import DetectionLoss, weigh_by_centerness, weigh_by_iou, weigh_by_score
from clq.modeling.head import DenseHead
from clq.modeling.losses import focal_loss, quality_focal_loss, varifocal_loss
from clq.modeling.quality import Centerness, DistributionGuided, PredictedIoU
from clq.modeling.scoring import ScoreRule


def pyramid_shapes(backbone: nn.Module, levels: list[str]) -> list[ShapeSpec]:
    """Channels and stride of each level that a detector reads.

    Raises:
        UserError: a level that the backbone does not have, or none.
    """
    there = backbone.output_shape()
    if not levels or not set(levels) <= set(there):
        raise UserError(f"MODEL.CLQ.IN_FEATURES {levels}: name one or more that the backbone has: {', '.join(there)}.")
    return [there[level] for level in levels]


def build_coder(cfg: CfgNode):
    """The box coder of ``BOX.CODING``."""
    box = cfg.MODEL.CLQ.BOX
    return _choose(
        "BOX.CODING",
        box.CODING,
        delta=partial(DeltaCoder, box.WEIGHTS),
        distance=DistanceCoder,
        distribution=partial(DistributionCoder, box.REG_MAX),
    )


def build_quality(cfg: CfgNode):
    """The kind of quality of ``QUALITY.NAME``, or None."""
    quality = cfg.MODEL.CLQ.QUALITY
    return _choose(
        "QUALITY.NAME",
        quality.NAME,
        none=lambda: None,
        centerness=Centerness,
        iou=partial(PredictedIoU, quality.ALPHA, quality.TARGET),
        dgqp=DistributionGuided,
    )


def build_head(cfg: CfgNode, shapes: list[ShapeSpec], coder, quality) -> DenseHead:
    """The head of ``ALIGN``, ``REFINE`` and the towers' keys, on levels of these shapes."""
    c = cfg.MODEL.CLQ
    channels = shapes[0].channels
    align = _choose(
        "ALIGN.NAME",
        c.ALIGN.NAME,
        none=lambda: None,
        learned=lambda: AlignConv(channels, LearnedOffsets(), c.ALIGN.BACKEND),
        geometric=lambda: AlignConv(channels, GeometricOffsets(), c.ALIGN.BACKEND),
    )
    width = c.CONV_DIM if c.NUM_CONVS else channels
    branch = quality and _make(f"QUALITY.NAME {c.QUALITY.NAME}", partial(quality.branch, coder, width))
    refine = _choose(
        "REFINE.NAME",
        c.REFINE.NAME,
        none=lambda: None,
        star=lambda: StarRefinement(width, len(shapes), c.ALIGN.BACKEND),
    )
    if refine is not None and c.BOX.CODING != "distance":
        raise UserError(f"MODEL.CLQ.REFINE.NAME {c.REFINE.NAME}: refines distances; set MODEL.CLQ.BOX.CODING distance.")
    head = partial(
        DenseHead,
        in_channels=channels,
        num_levels=len(shapes),
        num_classes=c.NUM_CLASSES if c.NUM_CLASSES > 0 else resolve_num_classes(cfg),
        coder=coder,
        anchor_scale=c.ANCHOR_SCALE,
        num_convs=c.NUM_CONVS,
        conv_dim=c.CONV_DIM,
        norm=c.NORM,
        prior_prob=c.PRIOR_PROB,
        quality=branch,
        align=align,
        refine=refine,
    )
    return _make("NORM", head)


def build_loss(cfg: CfgNode, coder, quality, score: ScoreRule) -> DetectionLoss:
    """The loss of ``CLS``, ``BOX``, ``QUALITY`` and ``REFINE``."""
    c = cfg.MODEL.CLQ
    class_loss = _choose(
        "CLS.LOSS",
        c.CLS.LOSS,
        focal=lambda: partial(focal_loss, alpha=c.CLS.FOCAL_ALPHA, gamma=c.CLS.FOCAL_GAMMA),
        qfl=lambda: partial(quality_focal_loss, beta=c.CLS.BETA),
        vfl=lambda: partial(varifocal_loss, alpha=c.CLS.VFL_ALPHA, gamma=c.CLS.VFL_GAMMA),
    )
    box_weight = _choose(
        "BOX.WEIGHT_BY",
        c.BOX.WEIGHT_BY,
        none=lambda: None,
        centerness=lambda: weigh_by_centerness,
        score=lambda: weigh_by_score,
        iou=lambda: weigh_by_iou,
    )
    return DetectionLoss(
        score,
        coder,
        class_loss,
        soft_target=c.CLS.LOSS != "focal",
        quality_target=quality and quality.target,
        box_weight=box_weight,
        box_loss_weight=c.BOX.LOSS_WEIGHT,
        coarse_loss_weight=c.REFINE.COARSE_LOSS_WEIGHT,
        coder_loss_weight=c.BOX.DFL_WEIGHT,
        quality_loss_weight=c.QUALITY.LOSS_WEIGHT,
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
