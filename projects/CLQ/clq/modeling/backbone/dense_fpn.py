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
    """P6 and P7, each made by a stride-2 3x3 convolution, as in MMDetection's ATSS and GFL.

    Detectron2's ``LastLevelP6P7`` (RetinaNet) starts from the backbone's C5 and puts a ReLU between the two levels.
    Here P6 is made from the pyramid's own P5, and P7 reads P6 without a ReLU.

    Args:
        channels: number C of channels of P5 and of each level made from it.
        num_levels: number of levels, from P6 on.
        relu: whether there is a ReLU between P6 and P7 (VFNet).
    """

    in_feature = "p5"  # the feature that FPN passes to a top block

    def __init__(self, channels: int, num_levels: int = 2, relu: bool = False):
        super().__init__()
        self.num_levels = num_levels
        self.relu = relu
        for level in range(6, 6 + num_levels):
            conv = Conv2d(channels, channels, kernel_size=3, stride=2)  # padded by 1 in forward
            weight_init.c2_xavier_fill(conv)
            self.add_module(f"p{level}", conv)

    def forward(self, p5: Tensor) -> list[Tensor]:
        """Levels P6 (N, C, ceil(H / 2), ceil(W / 2)), P7 of half that size, ..., from P5 (N, C, H, W)."""
        levels = [p5]
        for conv in self.children():
            # Padded here and not in the convolution, because torch 2.14's bfloat16 convolution on the CPU leaves part
            # of its weight's gradient uninitialized where the input is one column wide (images up to 64 pixels).
            below = F.relu(levels[-1]) if self.relu and len(levels) > 1 else levels[-1]
            levels.append(conv(F.pad(below, (1, 1, 1, 1))))
        return levels[1:]


@BACKBONE_REGISTRY.register()
def build_dense_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Builds P3 to P7 (strides 8 to 128) on the ResNet or ResNeXt, deformable or not, of ``MODEL.RESNETS``.

    Raises:
        UserError: see :func:`_dense_fpn`.
    """
    return _dense_fpn(cfg, lambda: use_torchvision_ops(build_resnet_backbone(cfg, input_shape)))


@BACKBONE_REGISTRY.register()
def build_dense_res2net_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Builds P3 to P7 (strides 8 to 128) on the Res2Net of ``MODEL.RESNETS``.

    Raises:
        UserError: see :func:`_dense_fpn` and :func:`~clq.modeling.backbone.res2net.build_res2net_backbone`.
    """
    return _dense_fpn(cfg, lambda: build_res2net_backbone(cfg, input_shape))


def _dense_fpn(cfg, build_bottom_up: Callable[[], Backbone]) -> FPN:
    """Builds the pyramid of a config.

    Levels above P5 that ``MODEL.CLQ.IN_FEATURES`` does not name are not built, so that each parameter gets a gradient.

    Args:
        cfg: the config.
        build_bottom_up: function that builds the ResNet; it is called after the checks.

    Raises:
        UserError: ``MODEL.FPN.IN_FEATURES`` does not end with res5, so that there is no P5; or the config names a level
            that the pyramid does not have, or leaves a level without a use.
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
        bottom_up=build_bottom_up(),
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
