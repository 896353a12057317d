"""The parts of Res2Net and its settings.

checkpoint/test_backbone_names.py tests that a block computes what MMDetection's computes.
"""

import clq
import pytest
import torch
from clq.errors import UserError
from clq.modeling.backbone.res2net import DeepStem
from detectron2.modeling import build_backbone
from torch.nn import functional as F

LEVELS = ["res3", "res4", "res5"]
R = "MODEL.RESNETS."
NARROW = [
    *("MODEL.BACKBONE.NAME", "build_dense_res2net_fpn_backbone", R + "STRIDE_IN_1X1", False, R + "NUM_GROUPS", 4),
    *(R + "STEM_OUT_CHANNELS", 8, R + "RES2_OUT_CHANNELS", 16, R + "WIDTH_PER_GROUP", 2, R + "DEPTH", 50),
    *(R + "OUT_FEATURES", LEVELS, "MODEL.FPN.IN_FEATURES", LEVELS, "MODEL.FPN.OUT_CHANNELS", 8),
]
DEFORMABLE = [R + "DEFORM_ON_PER_STAGE", [False, True, True, True]]


def build(*opts):
    torch.manual_seed(0)
    return build_backbone(clq.setup_cfg(None, [*NARROW, *opts]))


def test_the_stem_is_three_convolutions_and_a_pooling():
    torch.manual_seed(0)
    stem = DeepStem(3, 8, "")
    x = torch.randn(1, 3, 16, 20)
    out = x
    for conv, stride in ((stem.conv1, 2), (stem.conv2, 1), (stem.conv3, 1)):
        out = F.conv2d(out, conv.weight, stride=stride, padding=1).relu()
    torch.testing.assert_close(stem(x), F.max_pool2d(out, 3, 2, 1))
    assert stem(x).shape == (1, 8, 4, 5)


def test_channels_and_strides_are_those_of_a_resnet():
    shapes = build().bottom_up.output_shape()
    assert {name: (s.stride, s.channels) for name, s in shapes.items()} == {
        "res3": (8, 32),
        "res4": (16, 64),
        "res5": (32, 128),
    }


def test_deformable_convolutions_start_as_plain_ones():
    plain, deformable = build(), build(*DEFORMABLE)
    plain.load_state_dict({k: v for k, v in deformable.state_dict().items() if "offset" not in k})
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, found = plain(x), deformable(x)
    for level, feature in expected.items():
        torch.testing.assert_close(found[level], feature)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_parameters_that_are_not_frozen_learn(dtype):
    backbone = build(*DEFORMABLE, R + "DEFORM_MODULATED", True).bottom_up
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = backbone(torch.randn(1, 3, 64, 64))["res5"]
    assert out.dtype == dtype
    out.float().square().mean().backward()
    without = {name for name, p in backbone.named_parameters() if p.grad is None}
    assert without == {name for name, _ in backbone.named_parameters() if name.startswith(("stem.", "res2."))}
    assert all(p.grad.isfinite().all() for p in backbone.parameters() if p.grad is not None)
    for i in range(3):
        assert backbone.res3[0].conv2_offset[i].weight.grad.any()


@pytest.mark.parametrize(
    "key, value", [("DEPTH", 34), ("NUM_GROUPS", 1), ("STRIDE_IN_1X1", True), ("RES5_DILATION", 2)]
)
def test_settings_that_a_res2net_does_not_support(key, value):
    with pytest.raises(UserError, match=rf"MODEL\.RESNETS: for a Res2Net, .*{key}"):
        build(R + key, value)
