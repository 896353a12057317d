"""The pyramid of ATSS, GFL and CLQ: P3 to P7 on a ResNet or a Res2Net, with P6 from P5."""

from collections.abc import Callable

import fvcore.nn.weight_init as weight_init
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN, build_resnet_backbone
from torch import Tensor, nn
from torch.nn import functional as F

from clq.errors import UserError
from clq.modeling.backbone.deform_conv import use_torchvision_ops
from clq.modeling.backbone.res2net import build_res2net_backbone


class TopLevelsFromP5(nn.Module):
    """P6 and P7, each by a stride-2 3x3 convolution, as in MMDetection's ATSS and GFL.

    Detectron2's ``LastLevelP6P7`` (RetinaNet) differs in two ways: it starts from the backbone's C5, and it puts a ReLU
    between the two levels. Here P6 starts from the pyramid's own P5, and P7 sees P6 as it is, negative values included.

    Args:
        channels: C, of P5 and of each level on top.
        num_levels: how many, from P6 on.
        relu: whether P7 sees P6 through a ReLU after all (VFNet).
    """

    in_feature = "p5"  # what FPN hands to a top block

    def __init__(self, channels: int, num_levels: int = 2, relu: bool = False):
        super().__init__()
        self.num_levels = num_levels
        self.relu = relu
        for level in range(6, 6 + num_levels):
            conv = Conv2d(channels, channels, kernel_size=3, stride=2)  # and padding 1, see forward
            weight_init.c2_xavier_fill(conv)
            self.add_module(f"p{level}", conv)

    def forward(self, p5: Tensor) -> list[Tensor]:
        """P5 (N, C, H, W) -> [P6 (N, C, ceil(H/2), ceil(W/2)), P7, half of that again, ...]."""
        levels = [p5]
        for conv in self.children():
            # Padded here and not in the convolution: torch 2.14's bfloat16 convolution on the CPU leaves part of its
            # weight's gradient uninitialised where the input is one column wide (images of at most 64 pixels).
            below = F.relu(levels[-1]) if self.relu and len(levels) > 1 else levels[-1]
            levels.append(conv(F.pad(below, (1, 1, 1, 1))))
        return levels[1:]


@BACKBONE_REGISTRY.register()
def build_dense_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """P3 to P7 (strides 8 to 128) of any ResNet or ResNeXt that ``MODEL.RESNETS`` describes, deformable ones included.

    Raises:
        UserError: see :func:`_dense_fpn`.
    """
    return _dense_fpn(cfg, lambda: use_torchvision_ops(build_resnet_backbone(cfg, input_shape)))


@BACKBONE_REGISTRY.register()
def build_dense_res2net_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """The same on the Res2Net that ``MODEL.RESNETS`` describes.

    Raises:
        UserError: see :func:`_dense_fpn` and :func:`~clq.modeling.backbone.res2net.build_res2net_backbone`.
    """
    return _dense_fpn(cfg, lambda: build_res2net_backbone(cfg, input_shape))


def _dense_fpn(cfg, build_body: Callable[[], Backbone]) -> FPN:
    """The pyramid of a config on a body that is built once the config is known to be in order.

    Levels above P5 that ``MODEL.CLQ.IN_FEATURES`` does not need are not built: each parameter gets a gradient.

    Raises:
        UserError: ``MODEL.FPN.IN_FEATURES`` does not end with res5, so that there is no P5 to continue from; a level
            that the pyramid does not have, or that nothing uses.
    """
    used, in_features = cfg.MODEL.CLQ.IN_FEATURES, cfg.MODEL.FPN.IN_FEATURES
    num_top_levels = 2 if "p7" in used else int("p6" in used)
    if not in_features or in_features[-1] != "res5":
        raise UserError(f"MODEL.FPN.IN_FEATURES {in_features}: must end with res5, since P6 is made from P5.")
    levels = [f.replace("res", "p") for f in in_features]
    unknown = set(used) - {*levels, "p6", "p7"}
    if unknown or not used:
        raise UserError(f"MODEL.CLQ.IN_FEATURES {used}: name one or more of {', '.join([*levels, 'p6', 'p7'])}.")
    idle = [level for level in levels if level not in used and not (level == "p5" and num_top_levels)]
    if idle:
        raise UserError(
            f"MODEL.CLQ.IN_FEATURES {used}: leaves {', '.join(idle)} without a use; add it, or take it out of "
            "MODEL.FPN.IN_FEATURES where it is the finest."
        )
    top = None
    if num_top_levels:
        top = TopLevelsFromP5(cfg.MODEL.FPN.OUT_CHANNELS, num_top_levels, cfg.MODEL.CLQ.RELU_BEFORE_P7)
    return FPN(
        bottom_up=build_body(),
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
