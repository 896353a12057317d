import clq
import pytest
import torch
import torch.nn.functional as F
from clq.errors import UserError
from clq.modeling.backbone.dense_fpn import TopLevelsFromP5
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

R18 = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
TINY = [*R18, "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.BACKBONE.NAME", "build_dense_resnet_fpn_backbone"]
LEVELS = ["MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"], "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]]


def test_p7_sees_negative_p6():
    """One kernel negates its centre and one copies it: P6 = -P5 and P7 = P6, each at every second pixel."""
    top = TopLevelsFromP5(1)
    for conv, centre in ((top.p6, -1.0), (top.p7, 1.0)):
        torch.nn.init.zeros_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
        conv.weight.data[0, 0, 1, 1] = centre
    p6, p7 = top(torch.arange(1.0, 21.0).view(1, 1, 4, 5))
    assert p6.tolist() == [[[[-1.0, -3.0, -5.0], [-11.0, -13.0, -15.0]]]]
    assert p7.tolist() == [[[[-1.0, -5.0]]]]  # a ReLU between the levels would give zeros


def test_vfnets_p7_sees_p6_through_a_relu_and_p6_all_of_p5():
    top = TopLevelsFromP5(1, relu=True)
    p5 = torch.randn(1, 1, 6, 6)
    p6, p7 = top(p5)
    torch.testing.assert_close(p6, F.conv2d(p5, top.p6.weight, top.p6.bias, stride=2, padding=1))
    torch.testing.assert_close(p7, F.conv2d(p6.relu(), top.p7.weight, top.p7.bias, stride=2, padding=1))
    opts = [*TINY, *LEVELS, "MODEL.CLQ.RELU_BEFORE_P7", True]
    assert build_backbone(clq.setup_cfg(None, opts)).top_block.relu


def test_initialization_is_xavier_with_zero_bias():
    top = TopLevelsFromP5(64)
    bound = (3.0 / (64 * 9)) ** 0.5  # Caffe2's XavierFill: uniform in +-sqrt(3 / fan_in)
    for conv in (top.p6, top.p7):
        assert not conv.bias.any()
        assert 0.99 * bound < conv.weight.abs().max() <= bound


def test_levels_strides_and_p6_from_p5():
    backbone = build_backbone(clq.setup_cfg(None, TINY + LEVELS)).eval()
    shapes = {name: (s.channels, s.stride) for name, s in backbone.output_shape().items()}
    assert shapes == {"p3": (16, 8), "p4": (16, 16), "p5": (16, 32), "p6": (16, 64), "p7": (16, 128)}
    assert backbone.size_divisibility == 32
    with torch.no_grad():
        out = backbone(torch.randn(2, 3, 96, 160))
        top = backbone.top_block
        p6 = F.conv2d(out["p5"], top.p6.weight, top.p6.bias, stride=2, padding=1)
        p7 = F.conv2d(p6, top.p7.weight, top.p7.bias, stride=2, padding=1)
    assert [tuple(f.shape[-2:]) for f in out.values()] == [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]
    assert (p6 < 0).any()
    torch.testing.assert_close(out["p6"], p6)
    torch.testing.assert_close(out["p7"], p7)


def test_frozen_stages_need_no_gradient():
    backbone = build_backbone(clq.setup_cfg(None, [*TINY, *LEVELS, "MODEL.BACKBONE.FREEZE_AT", 2]))
    frozen = {n.split(".")[1] for n, p in backbone.named_parameters() if not p.requires_grad}
    trained = {n.split(".")[1] for n, p in backbone.bottom_up.named_parameters(prefix="bottom_up") if p.requires_grad}
    assert frozen == {"stem", "res2"}
    assert trained == {"res3", "res4", "res5"}


def test_without_res5_there_is_no_p5():
    opts = ["MODEL.RESNETS.OUT_FEATURES", ["res3", "res4"], "MODEL.FPN.IN_FEATURES", ["res3", "res4"]]
    with pytest.raises(UserError, match=r"MODEL\.FPN\.IN_FEATURES.*must end with res5"):
        build_backbone(clq.setup_cfg(None, TINY + opts), ShapeSpec(channels=3))
