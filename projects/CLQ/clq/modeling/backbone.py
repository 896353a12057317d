"""The pyramid of ATSS, GFL and CLQ: P3 to P7 on a ResNet, with P6 from P5."""

import fvcore.nn.weight_init as weight_init
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, build_resnet_backbone
from torch import Tensor, nn

from clq.errors import UserError


class LastLevelP6P7FromP5(nn.Module):
    """P6 and P7, each by a stride-2 3x3 convolution, as in MMDetection's ATSS and GFL.

    Detectron2's ``LastLevelP6P7`` (RetinaNet) differs in two ways: it starts from the backbone's C5, and it puts a ReLU
    between the two levels. Here P6 starts from the pyramid's own P5, and P7 sees P6 as it is, negative values included.

    Args:
        channels: C, of P5, P6 and P7.
    """

    # What FPN reads from a top block.
    num_levels = 2
    in_feature = "p5"

    def __init__(self, channels: int):
        super().__init__()
        self.p6 = Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)
        self.p7 = Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            weight_init.c2_xavier_fill(conv)

    def forward(self, p5: Tensor) -> list[Tensor]:
        """P5 (N, C, H, W) -> [P6 (N, C, ceil(H/2), ceil(W/2)), P7, half of that again]."""
        p6 = self.p6(p5)
        return [p6, self.p7(p6)]


@BACKBONE_REGISTRY.register()
def build_dense_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """P3 to P7 (strides 8 to 128) of any ResNet or ResNeXt that ``MODEL.RESNETS`` describes.

    Raises:
        UserError: ``MODEL.FPN.IN_FEATURES`` does not end with res5, so that there is no P5 to continue from.
    """
    in_features = cfg.MODEL.FPN.IN_FEATURES
    if not in_features or in_features[-1] != "res5":
        raise UserError(f"MODEL.FPN.IN_FEATURES {in_features}: must end with res5, since P6 is made from P5.")
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7FromP5(cfg.MODEL.FPN.OUT_CHANNELS),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
