"""Deformable convolutions in place of Detectron2's: names, values by hand and by slow loops, gradients, types."""

import math

import clq
import pytest
import torch
from clq.modeling.backbone.deform_conv import TorchvisionDeformConv, use_torchvision_ops
from detectron2.layers import DeformConv, ModulatedDeformConv, ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import DeformBottleneckBlock, build_resnet_backbone
from torch import nn
from torch.nn import functional as F

NARROW = [
    *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    *("MODEL.RESNETS.NUM_GROUPS", 2, "MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.FPN.OUT_CHANNELS", 8),
    *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"], "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]),
    *("MODEL.BACKBONE.NAME", "build_dense_resnet_fpn_backbone", "MODEL.RESNETS.STRIDE_IN_1X1", False),
]


def slow_deform_conv(x, offset, weight, stride, mask=None):
    """A 3x3 deformable convolution with padding 1, in loops over images, locations, taps and their four cells."""
    n, c, h, w = x.shape
    out_channels, per_group = weight.shape[:2]
    groups, rows, cols = c // per_group, offset.shape[2], offset.shape[3]
    num_deform = offset.shape[1] // 18
    out = torch.zeros(n, out_channels, rows, cols, dtype=x.dtype)
    for i, r, q in ((i, r, q) for i in range(n) for r in range(rows) for q in range(cols)):
        for tap in range(9):
            sampled = torch.zeros(c, dtype=x.dtype)
            for ch in range(c):
                first = ch // (c // num_deform) * 9 + tap  # of this channel's deformable group
                y = r * stride - 1 + tap // 3 + offset[i, 2 * first, r, q].item()
                z = q * stride - 1 + tap % 3 + offset[i, 2 * first + 1, r, q].item()
                for yy in (math.floor(y), math.floor(y) + 1):
                    for zz in (math.floor(z), math.floor(z) + 1):
                        if 0 <= yy < h and 0 <= zz < w:
                            sampled[ch] += (1 - abs(y - yy)) * (1 - abs(z - zz)) * x[i, ch, yy, zz]
                if mask is not None:
                    sampled[ch] *= mask[i, first, r, q]
            for o in range(out_channels):
                inputs = sampled[o // (out_channels // groups) * per_group :][:per_group]
                out[i, o, r, q] += (weight[o, :, tap // 3, tap % 3] * inputs).sum()
    return out


@pytest.mark.parametrize("stride, groups, num_deform, modulated", [(1, 1, 1, False), (2, 2, 1, True), (1, 2, 2, True)])
def test_equals_a_slow_loop(stride, groups, num_deform, modulated):
    torch.manual_seed(0)
    conv = TorchvisionDeformConv(4, 6, 3, stride, 1, groups=groups, bias=False).double()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    h, w = (5 - 1) // stride + 1, (6 - 1) // stride + 1
    offset = torch.randn(2, 18 * num_deform, h, w, dtype=torch.float64) * 1.5  # some taps leave the map
    mask = torch.rand(2, 9 * num_deform, h, w, dtype=torch.float64) if modulated else None
    torch.testing.assert_close(conv(x, offset, mask), slow_deform_conv(x, offset, conv.weight, stride, mask))


@pytest.mark.parametrize("stride, groups", [(1, 1), (2, 1), (2, 2)])
def test_without_offsets_it_is_a_plain_convolution(stride, groups):
    torch.manual_seed(0)
    conv = TorchvisionDeformConv(4, 4, 3, stride, 1, groups=groups, bias=False)
    x = torch.randn(2, 4, 7, 8)
    plain = F.conv2d(x, conv.weight, stride=stride, padding=1, groups=groups)
    offset, mask = torch.zeros(2, 18, *plain.shape[2:]), torch.ones(2, 9, *plain.shape[2:])
    torch.testing.assert_close(conv(x, offset), plain)
    torch.testing.assert_close(conv(x, offset, mask), plain)
    torch.testing.assert_close(conv(x, offset, mask / 2), plain / 2)


def test_whole_cells_shift_the_input_dy_before_dx():
    """A kernel that copies its centre reads a 3x4 map one row down and two columns to the right."""
    conv = TorchvisionDeformConv(1, 1, 3, 1, 1, bias=False)
    nn.init.zeros_(conv.weight).data[0, 0, 1, 1] = 1.0
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], [9.0, 10.0, 11.0, 12.0]]]])
    offset = torch.tensor([1.0, 2.0]).repeat(9).view(1, 18, 1, 1).expand(1, 18, 3, 4)
    expected = [[7.0, 8.0, 0.0, 0.0], [11.0, 12.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert conv(x, offset)[0, 0].tolist() == expected
    half_way = offset * torch.tensor([0.5, 0.0]).repeat(9).view(1, 18, 1, 1)  # half a row down
    assert conv(x, half_way)[0, 0].tolist() == [[3.0, 4.0, 5.0, 6.0], [7.0, 8.0, 9.0, 10.0], [4.5, 5.0, 5.5, 6.0]]


@pytest.mark.parametrize("modulated", [False, True])
def test_at_initialization_a_block_is_a_plain_convolution_scaled_by_its_open_or_half_open_mask(modulated):
    """The offsets are zero, so the taps are regular, with the weight sigmoid(0) = 1/2 where modulated."""
    torch.manual_seed(0)
    block = DeformBottleneckBlock(8, 8, bottleneck_channels=4, norm="", deform_modulated=modulated)
    block = use_torchvision_ops(block)
    x = torch.randn(1, 8, 6, 6)

    def plain(share):
        out = F.relu(F.conv2d(F.relu(block.conv1(x)), block.conv2.weight, padding=1) * share)
        return F.relu(block.conv3(out) + x)

    torch.testing.assert_close(block(x), plain(0.5 if modulated else 1.0))
    if modulated:
        block.conv2_offset.bias.data[18:] = 40.0  # logits after the 18 offsets
        torch.testing.assert_close(block(x), plain(1.0))


@pytest.mark.parametrize("kind", [DeformConv, ModulatedDeformConv])
def test_replaces_one_layer_and_keeps_its_settings_and_parameters(kind):
    norm = nn.BatchNorm2d(6)
    theirs = kind(4, 6, 3, 2, 2, 2, groups=2, deformable_groups=2, bias=False, norm=norm, activation=F.relu)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(theirs))
    ours = use_torchvision_ops(model)[1][0]
    assert type(ours) is TorchvisionDeformConv
    assert ours.weight is theirs.weight and ours.norm is norm and ours.activation is F.relu and ours.bias is None
    assert (ours.stride, ours.padding, ours.dilation, ours.groups) == ((2, 2), (2, 2), (2, 2), 2)
    x = torch.randn(2, 4, 9, 9)
    out = ours(x, torch.zeros(2, 36, 5, 5))
    expected = F.conv2d(x, theirs.weight, stride=2, padding=2, dilation=2, groups=2)
    torch.testing.assert_close(out, F.relu(norm(expected)))


def deformable(modulated, *opts):
    opts = ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [True, True, False, True], *opts]
    return clq.setup_cfg(None, [*NARROW, *opts, "MODEL.RESNETS.DEFORM_MODULATED", modulated])


@pytest.mark.parametrize("modulated", [False, True])
def test_a_backbone_has_detectron2s_names_and_shapes(modulated):
    cfg = deformable(modulated, "MODEL.RESNETS.NORM", "BN")
    with torch.device("meta"):
        theirs = build_resnet_backbone(cfg, ShapeSpec(channels=3)).state_dict()
        ours = build_backbone(cfg).bottom_up.state_dict()
    assert [(k, v.shape) for k, v in ours.items()] == [(k, v.shape) for k, v in theirs.items()]
    assert ours["res3.0.conv2_offset.bias"].shape == (27 if modulated else 18,)
    assert "res4.0.conv2_offset.bias" not in ours


@pytest.mark.parametrize("modulated", [False, True])
def test_gradients_reach_every_parameter_that_is_not_frozen(modulated):
    torch.manual_seed(0)
    backbone = build_backbone(deformable(modulated, "MODEL.RESNETS.NORM", "FrozenBN")).bottom_up
    backbone(torch.randn(1, 3, 64, 64))["res5"].square().mean().backward()
    without = {name for name, p in backbone.named_parameters() if p.grad is None}
    assert without == {name for name, _ in backbone.named_parameters() if name.startswith(("stem.", "res2."))}
    for name in ("conv2.weight", "conv2_offset.weight", "conv2_offset.bias"):
        assert backbone.res3[0].get_parameter(name).grad.any(), name
        assert not backbone.res2[0].get_parameter(name).requires_grad


def test_gradients_equal_those_of_finite_differences():
    torch.manual_seed(0)
    conv = TorchvisionDeformConv(2, 2, 3, 2, 1, bias=False).double()
    x, offset = torch.randn(1, 2, 4, 4, dtype=torch.float64), torch.rand(1, 18, 2, 2, dtype=torch.float64) * 0.8 + 0.1
    inputs = [t.requires_grad_() for t in (x, offset, torch.rand(1, 9, 2, 2, dtype=torch.float64), conv.weight)]

    def function(x, offset, mask, weight):
        return torch.func.functional_call(conv, {"weight": weight}, (x, offset, mask))

    assert torch.autograd.gradcheck(function, inputs)


def test_under_autocast_the_op_computes_in_float32():
    torch.manual_seed(0)
    block = use_torchvision_ops(DeformBottleneckBlock(8, 16, bottleneck_channels=4, deform_modulated=True, norm="BN"))
    x = torch.randn(1, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        out = block(x)
        offset, mask = torch.rand(1, 18, 6, 6), torch.rand(1, 9, 6, 6)
        features = torch.randn(1, 4, 6, 6).bfloat16()
        sampled = block.conv2(features, offset, mask)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in block.parameters())
    assert sampled.dtype == torch.float32
    torch.testing.assert_close(sampled, block.conv2(features.float(), offset, mask))
