"""Everything that ``import clq`` offers, and what it registers with Detectron2.

It is apart from ``clq/__init__.py`` because importing it takes seconds, and ``clq --help`` shall not.
"""

import warnings

__all__ = [
    "CLQ",
    "FCOS",
    "DeltaCoder",
    "DistributionCoder",
    "LogScore",
    "UserError",
    "add_clq_config",
    "build_dense_resnet_fpn_backbone",
    "build_shufflenet_pan_backbone",
    "configs",
    "convert_mmdet",
    "distribution_focal_loss",
    "joint_score",
    "load",
    "match_atss",
    "quality_focal_loss",
    "setup_cfg",
]

with warnings.catch_warnings():
    # Detectron2 scripts two functions when it is imported. Users can do nothing about this warning.
    warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
    from clq import compat, configs  # first, because compat makes Detectron2 importable
    from clq.checkpoint.mmdet_names import convert_mmdet
    from clq.config import add_clq_config, finish_configs_with, limit_json, setup_cfg
    from clq.data.datasets import register_declared
    from clq.errors import UserError
    from clq.inference.load import load
    from clq.modeling.assign.atss import match_atss
    from clq.modeling.backbone.dense_fpn import build_dense_resnet_fpn_backbone
    from clq.modeling.backbone.shufflenet_pan import build_shufflenet_pan_backbone
    from clq.modeling.box_coding import DeltaCoder, DistributionCoder
    from clq.modeling.losses import distribution_focal_loss, quality_focal_loss
    from clq.modeling.meta_arch.clq import CLQ
    from clq.modeling.meta_arch.fcos import FCOS
    from clq.modeling.scoring import joint_score
    from clq.modeling.structures import LogScore

    compat.restore_numpy_names()
    finish_configs_with(limit_json)
    finish_configs_with(register_declared)
# Detectron2's anchor generator calls it, in every process that detects something.
warnings.filterwarnings("ignore", r"torch\.meshgrid: in an upcoming release", UserWarning)
