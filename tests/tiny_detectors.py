"""The project's variants with 32 channels, on a pyramid of five convolutions, for the tests of whole detectors."""

import itertools
from pathlib import Path

import clq
import torch
from clq.modeling.backbone.dense_fpn import TopLevelsFromP5
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import Boxes, Instances
from torch import nn

CONFIGS = Path(__file__).parents[1] / "configs"
STRIDES = [8, 16, 32, 64, 128]
FIVE_LEVELS = ["MODEL.CLQ.IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"]]
# For each variant its config, overrides of the config, and its losses besides those of class and box.
VARIANTS = {
    "atss": ("ATSS/atss_R_50_FPN_1x", [], {"loss_quality"}),
    "atss_qfl": ("ablations/atss_qfl_R_50_FPN_1x", [], set()),
    "atss_lqe": ("ablations/atss_lqe_R_50_FPN_1x", [], {"loss_quality"}),
    "atss_clq": ("ablations/atss_clq_R_50_FPN_1x", [], {"loss_quality"}),
    "clq_wo_lqe": ("ablations/clq_wo_lqe_R_50_FPN_1x", [], {"loss_dfl"}),
    "clq_wo_align": ("ablations/clq_wo_align_R_50_FPN_1x", [], {"loss_dfl", "loss_quality"}),
    "clq": ("CLQ/clq_R_50_FPN_1x", [], {"loss_dfl", "loss_quality"}),
    "clq_geometric": ("ablations/clq_geometric_align_R_50_FPN_1x", [], {"loss_dfl", "loss_quality"}),
    "gfl": ("GFL/gfl_R_50_FPN_1x", [], {"loss_dfl"}),
    "vfnet": ("VFNET/vfnet_R_50_FPN_1x", [], {"loss_box_coarse"}),
    "tood": ("TOOD/tood_R_50_FPN_1x", ["MODEL.CLQ.ASSIGN.WARMUP", 0.0], set()),
    "tood_warmup": ("TOOD/tood_R_50_FPN_1x", ["MODEL.CLQ.ASSIGN.WARMUP", 1.0], set()),
    "nanodet": ("NANODET/nanodet_m_320", FIVE_LEVELS, {"loss_dfl"}),
    "clq_lite": ("CLQ/clq_lite_320", FIVE_LEVELS, {"loss_dfl", "loss_quality"}),
    "simota": ("CLQ/clq_R_50_FPN_1x", ["MODEL.CLQ.ASSIGN.NAME", "simota"], {"loss_dfl", "loss_quality"}),
    "max_iou": ("ATSS/atss_R_50_FPN_1x", ["MODEL.CLQ.ASSIGN.NAME", "max_iou"], {"loss_quality"}),
    "gflv2": ("GFLV2/gflv2_R_50_FPN_1x", [], {"loss_dfl"}),
}


@BACKBONE_REGISTRY.register()
class FiveConvolutions(Backbone):
    """Levels P3 to P7 with 32 channels and the sizes that an FPN gives."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.levels = nn.Sequential(Conv2d(3, 32, 8, stride=8), *(Conv2d(32, 32, 2, stride=2) for _ in range(2)))
        self.top = TopLevelsFromP5(32)

    size_divisibility = 32

    def forward(self, x):
        levels = list(itertools.accumulate(self.levels, lambda x, conv: conv(x), initial=x))[1:]
        return {f"p{i}": x for i, x in enumerate([*levels, *self.top(levels[-1])], start=3)}

    def output_shape(self):
        return {f"p{i + 3}": ShapeSpec(channels=32, stride=s) for i, s in enumerate(STRIDES)}


def build(variant, *opts):
    """A variant of :data:`VARIANTS` for 5 classes, with the same random weights in every call."""
    torch.manual_seed(0)
    config, own, _ = VARIANTS[variant]
    c = "MODEL.CLQ."
    small = [c + "CONV_DIM", 32, c + "NUM_CONVS", 1, c + "NUM_CLASSES", 5, "MODEL.BACKBONE.NAME", "FiveConvolutions"]
    opts = [*small, "DATASETS.TRAIN", [], "MODEL.DEVICE", "cpu", *own, *opts]
    return build_model(clq.setup_cfg(str(CONFIGS / f"{config}.yaml"), opts))


def sample(size, boxes=()):
    """The input of a training for one image (H, W) of noise, with boxes of the classes 0, 1, ..."""
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % 5
    return {"image": torch.rand(3, *size) * 255, "instances": instances}
