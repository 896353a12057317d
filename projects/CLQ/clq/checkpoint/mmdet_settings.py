"""The settings of MMDetection that weights do not show, and the values that they must have in a supported detector."""

from collections.abc import Callable
from dataclasses import dataclass

from detectron2.config import CfgNode

NO_DEFAULT = object()  # default of a required setting; if a config does not have it, nothing is compared


@dataclass(frozen=True)
class Setting:
    """A setting that must agree with a config of this project.

    Attributes:
        path: path of the setting in MMDetection's config, below ``model``.
        default: MMDetection's default.
        ours: function that computes the required value from a config of this project.
        in_weights: whether the weights show the value too, so that a difference is a mistake in MMDetection's config.
    """

    path: str
    default: object
    ours: Callable[[CfgNode], object]
    in_weights: bool = False


def _always(value: object) -> Callable[[CfgNode], object]:
    return lambda cfg: value


def _stds(cfg: CfgNode) -> list[float]:
    return [1 / weight for weight in cfg.MODEL.CLQ.BOX.WEIGHTS]


def _strides(cfg: CfgNode) -> list[int]:
    return [2 ** int(level[1:]) for level in cfg.MODEL.CLQ.IN_FEATURES]


_GENERATOR = "bbox_head.anchor_generator."
COMMON = (
    Setting("backbone.style", "pytorch", lambda cfg: "caffe" if cfg.MODEL.RESNETS.STRIDE_IN_1X1 else "pytorch"),
    Setting("backbone.strides", [1, 2, 2, 2], _always([1, 2, 2, 2])),
    Setting("backbone.dilations", [1, 1, 1, 1], lambda cfg: [1, 1, 1, cfg.MODEL.RESNETS.RES5_DILATION]),
    Setting("backbone.conv_cfg", None, _always(None)),
    Setting("backbone.norm_cfg.eps", 1e-5, _always(1e-5)),
    Setting("neck.type", NO_DEFAULT, _always("FPN")),
    Setting("neck.stages", NO_DEFAULT, lambda cfg: [int(x[3:]) - 2 for x in cfg.MODEL.FPN.IN_FEATURES]),
    Setting("neck.end_level", -1, _always(-1)),
    Setting("neck.num_outs", NO_DEFAULT, lambda cfg: len(cfg.MODEL.CLQ.IN_FEATURES)),
    Setting("neck.add_extra_convs", False, _always("on_output")),
    Setting("neck.relu_before_extra_convs", False, lambda cfg: cfg.MODEL.CLQ.RELU_BEFORE_P7),
    Setting("neck.conv_cfg", None, _always(None)),
    Setting("neck.act_cfg", None, _always(None)),
    Setting("neck.upsample_cfg.mode", "nearest", _always("nearest")),
    Setting("bbox_head.num_classes", NO_DEFAULT, lambda cfg: cfg.MODEL.CLQ.NUM_CLASSES, in_weights=True),
    Setting("bbox_head.conv_cfg", None, _always(None)),
    Setting("bbox_head.norm_cfg.type", "GN", lambda cfg: cfg.MODEL.CLQ.NORM),
    Setting("bbox_head.norm_cfg.num_groups", 32, _always(32)),
    Setting("bbox_head.norm_cfg.eps", 1e-5, _always(1e-5)),
    Setting(_GENERATOR + "type", "AnchorGenerator", _always("AnchorGenerator")),
    Setting(_GENERATOR + "strides", NO_DEFAULT, _strides),
    Setting(_GENERATOR + "base_sizes", None, _always(None)),
    Setting(_GENERATOR + "octave_base_scale", NO_DEFAULT, lambda cfg: cfg.MODEL.CLQ.ANCHOR_SCALE),
    Setting(_GENERATOR + "scales_per_octave", 1, _always(1)),
    Setting(_GENERATOR + "scales", None, _always(None)),
    Setting(_GENERATOR + "ratios", NO_DEFAULT, _always([1.0])),
    Setting(_GENERATOR + "centers", None, _always(None)),
    Setting(_GENERATOR + "center_offset", 0.0, lambda cfg: cfg.MODEL.CLQ.ANCHOR_OFFSET),
)
_ASSIGNER = (
    Setting("train_cfg.assigner.type", NO_DEFAULT, _always("ATSSAssigner")),
    Setting("train_cfg.assigner.topk", NO_DEFAULT, lambda cfg: cfg.MODEL.CLQ.TOPK),
)
_DISTRIBUTIONS = (*_ASSIGNER, Setting("bbox_head.reg_max", 16, lambda cfg: cfg.MODEL.CLQ.BOX.REG_MAX, in_weights=True))
# Class of a head -> its settings in addition to the common ones.
OF_HEAD = {
    "ATSSHead": (
        *_ASSIGNER,
        Setting("bbox_head.bbox_coder.type", "DeltaXYWHBBoxCoder", _always("DeltaXYWHBBoxCoder")),
        Setting("bbox_head.bbox_coder.target_means", [0.0] * 4, _always([0.0] * 4)),
        Setting("bbox_head.bbox_coder.target_stds", [1.0] * 4, _stds),
        Setting("bbox_head.bbox_coder.clip_border", True, _always(True)),
        Setting("bbox_head.bbox_coder.add_ctr_clamp", False, _always(False)),
    ),
    "GFLHead": _DISTRIBUTIONS,
    "GFocalHead": (
        *_DISTRIBUTIONS,
        Setting("bbox_head.reg_topk", 4, _always(4)),
        Setting("bbox_head.add_mean", True, _always(True)),
    ),
    "CLQ_Head_align_iou_pred": _DISTRIBUTIONS,
    "VFNetHead": (
        *_ASSIGNER,
        Setting("bbox_head.strides", [4, 8, 16, 32, 64], _strides),
        Setting("bbox_head.regress_ranges", NO_DEFAULT, lambda cfg: [8 * s for s in _strides(cfg)]),
        Setting("bbox_head.bbox_norm_type", "reg_denom", _always("reg_denom")),
        Setting("bbox_head.gradient_mul", 0.1, _always(0.1)),
        Setting("bbox_head.use_atss", True, _always(True)),
        Setting("bbox_head.use_vfl", True, _always(True)),
    ),
    "TOODHead": (
        Setting("bbox_head.anchor_type", "anchor_free", _always("anchor_free")),
        Setting("train_cfg.initial_assigner.type", NO_DEFAULT, _always("ATSSAssigner")),
        Setting("train_cfg.initial_assigner.topk", NO_DEFAULT, lambda cfg: cfg.MODEL.CLQ.TOPK),
        Setting("train_cfg.assigner.type", NO_DEFAULT, _always("TaskAlignedAssigner")),
        Setting("train_cfg.assigner.topk", NO_DEFAULT, lambda cfg: cfg.MODEL.CLQ.ASSIGN.TASK_TOPK),
        Setting("train_cfg.alpha", NO_DEFAULT, lambda cfg: cfg.MODEL.CLQ.ASSIGN.TASK_ALPHA),
        Setting("train_cfg.beta", NO_DEFAULT, lambda cfg: cfg.MODEL.CLQ.ASSIGN.TASK_BETA),
    ),
}
