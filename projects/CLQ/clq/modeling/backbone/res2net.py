"""Res2Net (Gao et al. 2019) in its v1d form, as in MMDetection: deep stem, shortcuts through average pooling."""

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone import ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from clq.errors import UserError
from clq.modeling.backbone.deform_conv import TorchvisionDeformConv

_NUM_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # depth -> number of blocks of res2 to res5


class DeepStem(CNNBlockBase):
    """A stem of stride 4 with three 3x3 convolutions and max pooling, in place of ResNet's 7x7 convolution."""

    def __init__(self, in_channels: int, out_channels: int, norm: str):
        super().__init__(in_channels, out_channels, 4)
        self.conv1 = _conv(in_channels, out_channels // 2, 3, norm, stride=2)
        self.conv2 = _conv(out_channels // 2, out_channels // 2, 3, norm)
        self.conv3 = _conv(out_channels // 2, out_channels, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, O, ceil(H / 4), ceil(W / 4)) from images (N, C, H, W)."""
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.relu_(conv(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class Res2NetBlock(CNNBlockBase):
    """A bottleneck whose 3x3 convolution is a chain of smaller ones, on groups of channels.

    Each convolution of the chain reads its own group plus the output of the convolution before it. In the first block
    of a stage, which is the one with a shortcut, the convolutions run side by side instead. The last of the ``scales``
    groups has no convolution.

    Args:
        in_channels: number of channels of the input.
        out_channels: number of channels of the output.
        bottleneck_channels: number of channels of all groups together.
        scales: number of groups.
        stride: stride of the 3x3 convolutions.
        norm: normalization of all convolutions, a name that :func:`detectron2.layers.get_norm` knows.
        offset_channels: number of channels that describe one tap of a deformable convolution, 2 for each deformable
            group, or 3 where it is modulated; 0 for convolutions that are not deformable.
        modulated: whether a third of these channels are logits of the taps' weights.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        scales: int,
        stride: int = 1,
        norm: str = "BN",
        offset_channels: int = 0,
        modulated: bool = False,
    ):
        super().__init__(in_channels, out_channels, stride)
        self.scales, self.modulated = scales, modulated
        width = bottleneck_channels // scales
        self.shortcut = _conv(in_channels, out_channels, 1, norm) if in_channels != out_channels else None
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, norm)
        kind = TorchvisionDeformConv if offset_channels else Conv2d
        self.conv2 = nn.ModuleList(_conv(width, width, 3, norm, stride, kind) for _ in range(scales - 1))
        num_offsets = scales - 1 if offset_channels else 0
        offsets = [Conv2d(width, 9 * offset_channels, 3, stride, padding=1) for _ in range(num_offsets)]
        for offset in offsets:  # offsets of zero: it starts as a plain convolution
            nn.init.zeros_(offset.weight)
            nn.init.zeros_(offset.bias)
        self.conv2_offset = nn.ModuleList(offsets)
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, O, ceil(H / stride), ceil(W / stride)) from features (N, C, H, W)."""
        *groups, last = F.relu_(self.conv1(x)).chunk(self.scales, dim=1)
        outputs: list[Tensor] = []
        for i, group in enumerate(groups):
            chained = outputs and self.shortcut is None
            outputs.append(F.relu_(self._conv2(i, group + outputs[-1] if chained else group)))
        if self.stride > 1:
            last = F.avg_pool2d(last, 3, self.stride, padding=1)
        out = self.conv3(torch.cat((*outputs, last), dim=1))
        if self.shortcut is not None:
            x = self.shortcut(F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False))
        return F.relu_(out + x)

    def _conv2(self, i: int, x: Tensor) -> Tensor:
        if not self.conv2_offset:
            return self.conv2[i](x)
        offset = self.conv2_offset[i](x)
        if not self.modulated:
            return self.conv2[i](x, offset)
        *offset, mask = offset.chunk(3, dim=1)
        return self.conv2[i](x, torch.cat(offset, dim=1), mask.sigmoid())


def _conv(in_channels: int, out_channels: int, size: int, norm: str, stride: int = 1, kind: type = Conv2d) -> Conv2d:
    padding = size // 2
    conv = kind(in_channels, out_channels, size, stride, padding, bias=False, norm=get_norm(norm, out_channels))
    weight_init.c2_msra_fill(conv)
    return conv


def build_res2net_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Builds the Res2Net of ``MODEL.RESNETS``, with NUM_GROUPS scales of WIDTH_PER_GROUP channels.

    Raises:
        UserError: a Res2Net does not exist in this depth, or does not support a setting of ResNets.
    """
    r = cfg.MODEL.RESNETS
    if r.DEFORM_NUM_GROUPS < 1 or r.WIDTH_PER_GROUP % r.DEFORM_NUM_GROUPS:
        raise UserError(
            f"MODEL.RESNETS.DEFORM_NUM_GROUPS {r.DEFORM_NUM_GROUPS}: must be at least 1 and divide WIDTH_PER_GROUP, "
            f"{r.WIDTH_PER_GROUP}."
        )
    if r.DEPTH not in _NUM_BLOCKS or r.NUM_GROUPS < 2 or r.STRIDE_IN_1X1 or r.RES5_DILATION != 1:
        raise UserError(
            f"MODEL.RESNETS: for a Res2Net, DEPTH must be one of {', '.join(map(str, _NUM_BLOCKS))}, NUM_GROUPS (its "
            "scales) at least 2, STRIDE_IN_1X1 False and RES5_DILATION 1."
        )
    offset_channels = (3 if r.DEFORM_MODULATED else 2) * r.DEFORM_NUM_GROUPS
    stages, in_channels = [], r.STEM_OUT_CHANNELS
    for i, num_blocks in enumerate(_NUM_BLOCKS[r.DEPTH]):
        stages.append(
            ResNet.make_stage(
                Res2NetBlock,
                num_blocks,
                in_channels=in_channels,
                out_channels=r.RES2_OUT_CHANNELS * 2**i,
                bottleneck_channels=r.NUM_GROUPS * r.WIDTH_PER_GROUP * 2**i,
                scales=r.NUM_GROUPS,
                stride_per_block=[1 if i == 0 else 2] + [1] * (num_blocks - 1),
                norm=r.NORM,
                offset_channels=offset_channels if r.DEFORM_ON_PER_STAGE[i] else 0,
                modulated=r.DEFORM_MODULATED,
            )
        )
        in_channels = r.RES2_OUT_CHANNELS * 2**i
    stem = DeepStem(input_shape.channels, r.STEM_OUT_CHANNELS, r.NORM)
    return ResNet(stem, stages, out_features=r.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
