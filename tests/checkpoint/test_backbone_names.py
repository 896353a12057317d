"""Backbones with MMDetection's names: those of published sizes, and blocks that compute what the originals do."""

import clq
import pytest
import torch
from clq.checkpoint.checkpointer import Checkpointer
from clq.checkpoint.torchvision_weights import torchvision_to_detectron2
from clq.modeling.backbone.deform_conv import use_torchvision_ops
from clq.modeling.backbone.res2net import Res2NetBlock
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import BottleneckBlock, DeformBottleneckBlock
from mmdet_models import CONFIGS, build_small, random_weights, res2net_shapes, resnet_shapes
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

BOTTOM_UP = "backbone.bottom_up."
OFFSETS = {"plain": 0, "deformable": 18, "modulated": 27}
PUBLISHED = {
    "R_101": resnet_shapes((3, 4, 23, 3), 64, 256, 64, 1, (0, 27, 27, 27)),
    "X_101_32x4d": resnet_shapes((3, 4, 23, 3), 64, 256, 4, 32, (0, 27, 27, 27)),
    "R2_101": res2net_shapes((3, 4, 23, 3), 64, 256, 26, 4, (0, 0, 27, 27)),
}


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_backbones_of_gflv2_have_these_names_and_shapes(name, modulated):
    """At full size, on the meta device; the Res2Net is the v1d form with 101 layers and 26w x 4s."""
    theirs = {
        key: (18 if "conv_offset" in key and not modulated else shape[0], *shape[1:]) if shape else ()
        for key, shape in PUBLISHED[name].items()
    }
    config = str(CONFIGS / f"GFLV2/gflv2_{name}_DCN_FPN_2x_ms.yaml")
    with torch.device("meta"):
        ours = build_backbone(clq.setup_cfg(config, ["MODEL.RESNETS.DEFORM_MODULATED", modulated])).bottom_up
        converted = torchvision_to_detectron2({key: torch.empty(shape) for key, shape in theirs.items()})
    assert {k: v.shape for k, v in converted.items()} == {BOTTOM_UP + k: v.shape for k, v in ours.state_dict().items()}


def test_names_are_those_given_by_hand():
    res2net = {
        "stem.0.weight": "stem.conv1.weight",
        "stem.4.running_mean": "stem.conv2.norm.running_mean",
        "stem.6.weight": "stem.conv3.weight",
        "layer1.0.conv1.weight": "res2.0.conv1.weight",
        "layer1.0.convs.0.weight": "res2.0.conv2.0.weight",
        "layer1.0.bns.2.bias": "res2.0.conv2.2.norm.bias",
        "layer2.3.convs.1.conv_offset.bias": "res3.3.conv2_offset.1.bias",
        "layer4.0.downsample.1.weight": "res5.0.shortcut.weight",
        "layer4.0.downsample.2.weight": "res5.0.shortcut.norm.weight",
        "layer3.22.bn3.running_var": "res4.22.conv3.norm.running_var",
    }
    expected = {BOTTOM_UP + name: key for key, name in res2net.items()}
    assert torchvision_to_detectron2({key: key for key in res2net}) == expected
    resnet = {"layer2.0.conv2.conv_offset.weight": "res3.0.conv2_offset.weight"}
    resnet["layer2.0.downsample.1.weight"] = "res3.0.shortcut.norm.weight"
    assert torchvision_to_detectron2({k: k for k in resnet}) == {BOTTOM_UP + name: key for key, name in resnet.items()}


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_file_with_a_backbone_can_start_a_training(wrapped, tmp_path):
    """ImageNet weights have a classifier, which is ignored, and no offsets, which start at zero."""
    torch.manual_seed(0)
    weights = random_weights({**res2net_shapes(), "fc.weight": (10, 128), "fc.bias": (10,)})
    torch.save({"state_dict": weights, "meta": {}} if wrapped else weights, tmp_path / "backbone.pth")
    r = "MODEL.RESNETS."
    narrow = [r + "DEPTH", 50, r + "STEM_OUT_CHANNELS", 8, r + "RES2_OUT_CHANNELS", 16, r + "WIDTH_PER_GROUP", 3]
    model = build_small("GFLV2/gflv2_R2_101_DCN_FPN_2x_ms.yaml", *narrow)
    Checkpointer(model).load(str(tmp_path / "backbone.pth"), checkpointables=[])
    bottom_up = model.backbone.bottom_up
    assert torch.equal(bottom_up.res3[1].conv2[2].weight, weights["layer2.1.convs.2.weight"])
    assert torch.equal(bottom_up.res5[0].shortcut.norm.running_mean, weights["layer4.0.downsample.2.running_mean"])
    assert not bottom_up.res4[0].conv2_offset[0].weight.any()


def test_openmmlabs_resnext_is_the_backbone_of_our_configs():
    """At full size, on the meta device: open-mmlab://resnext101_64x4d, with which published figures were measured."""
    theirs = resnet_shapes((3, 4, 23, 3), 64, 256, 4, 64)
    with torch.device("meta"):
        ours = build_backbone(clq.setup_cfg(str(CONFIGS / "CLQ/clq_X_101_64x4d_FPN_2x_ms.yaml"))).bottom_up
        converted = torchvision_to_detectron2({key: torch.empty(shape) for key, shape in theirs.items()})
    assert {k: v.shape for k, v in converted.items()} == {BOTTOM_UP + k: v.shape for k, v in ours.state_dict().items()}


def test_openmmlabs_file_of_a_resnext_can_start_a_training(tmp_path):
    """The file holds a state dict with a classifier. Here it has 4 of the 64 groups and is narrow."""
    torch.manual_seed(0)
    shapes = resnet_shapes((3, 4, 23, 3), width=4, groups=4)
    weights = random_weights({**shapes, "fc.weight": (10, 128), "fc.bias": (10,)})
    path = tmp_path / "resnext101_64x4d-ee2c6f71.pth"
    torch.save(weights, path)
    r = "MODEL.RESNETS."
    narrow = [r + "NUM_GROUPS", 4, r + "STEM_OUT_CHANNELS", 8, r + "RES2_OUT_CHANNELS", 16]
    model = build_small("CLQ/clq_X_101_64x4d_FPN_2x_ms.yaml", *narrow)
    Checkpointer(model).load(str(path), checkpointables=[])
    bottom_up = model.backbone.bottom_up
    assert torch.equal(bottom_up.stem.conv1.norm.running_var, weights["bn1.running_var"])
    assert torch.equal(bottom_up.res4[22].conv2.weight, weights["layer3.22.conv2.weight"])
    assert torch.equal(bottom_up.res5[0].shortcut.norm.running_mean, weights["layer4.0.downsample.1.running_mean"])


class Original:
    """Computes layers of MMDetection from the weights of a block under MMDetection's names."""

    def __init__(self, weights, stride):
        self.weights, self.stride = weights, stride

    def norm(self, name, x):
        statistics = (self.weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *statistics)

    def conv(self, name, x):
        return F.conv2d(x, self.weights[f"{name}.weight"])

    def conv3x3(self, name, x):
        weight, offset_weight = self.weights[f"{name}.weight"], self.weights.get(f"{name}.conv_offset.weight")
        same = {"stride": self.stride, "padding": 1}
        if offset_weight is None:
            return F.conv2d(x, weight, groups=x.shape[1] // weight.shape[1], **same)
        offset = F.conv2d(x, offset_weight, self.weights[f"{name}.conv_offset.bias"], **same)
        mask = offset[:, 18:].sigmoid() if len(offset_weight) == 27 else None
        return deform_conv2d(x, offset[:, :18], weight, mask=mask, **same)

    def bottleneck(self, x):
        out = self.norm("bn1", self.conv("conv1", x)).relu()
        out = self.norm("bn2", self.conv3x3("conv2", out)).relu()
        shortcut = self.norm("downsample.1", self.conv("downsample.0", x)[:, :, :: self.stride, :: self.stride])
        return (self.norm("bn3", self.conv("conv3", out)) + shortcut).relu()

    def bottle2neck(self, x, first):
        """Gao et al., figure 2b; the first block of a stage has no sums between the groups, and pools the last."""
        x1, x2, x3, x4 = self.norm("bn1", self.conv("conv1", x)).relu().chunk(4, 1)
        y1 = self.norm("bns.0", self.conv3x3("convs.0", x1)).relu()
        y2 = self.norm("bns.1", self.conv3x3("convs.1", x2 if first else x2 + y1)).relu()
        y3 = self.norm("bns.2", self.conv3x3("convs.2", x3 if first else x3 + y2)).relu()
        if first and self.stride == 2:  # the mean of nine values, including those of the padding
            box = torch.full((x4.shape[1], 1, 3, 3), 1 / 9)
            x4 = F.conv2d(x4, box, stride=2, padding=1, groups=len(box))
        out = self.norm("bn3", self.conv("conv3", torch.cat((y1, y2, y3, x4), 1)))
        if first:
            n, c, h, w = x.shape
            pooled = x.view(n, c, h // self.stride, self.stride, w // self.stride, self.stride).mean((3, 5))
            x = self.norm("downsample.2", self.conv("downsample.1", pooled))
        return (out + x).relu()


def fill(block, weights):
    """Loads the weights of a block under MMDetection's names into a block of this project."""
    renamed = torchvision_to_detectron2({f"layer1.0.{key}": value for key, value in weights.items()})
    use_torchvision_ops(block).load_state_dict({k.removeprefix(BOTTOM_UP + "res2.0."): v for k, v in renamed.items()})


def block_weights(shapes, number):
    prefix = f"layer1.{number}."
    return random_weights({key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)})


@pytest.mark.parametrize("kind", OFFSETS)
@pytest.mark.parametrize("groups", [1, 2])
def test_a_block_of_a_resnet_computes_what_the_original_does(kind, groups):
    torch.manual_seed(0)
    offsets = OFFSETS[kind]
    weights = block_weights(resnet_shapes((1, 0, 0, 0), groups=groups, offset_channels=(offsets, 0, 0, 0)), 0)
    sizes = {"bottleneck_channels": 4 * groups, "num_groups": groups, "stride": 2, "norm": "FrozenBN"}
    if offsets:
        block = DeformBottleneckBlock(8, 16, **sizes, deform_modulated=offsets == 27)
    else:
        block = BottleneckBlock(8, 16, **sizes)
    fill(block, weights)
    x = torch.randn(2, 8, 6, 8)
    torch.testing.assert_close(block(x), Original(weights, 2).bottleneck(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", OFFSETS)
@pytest.mark.parametrize("first, stride", [(True, 1), (True, 2), (False, 1)])
def test_a_block_of_a_res2net_computes_what_the_original_does(first, stride, kind):
    torch.manual_seed(0)
    offsets = OFFSETS[kind]
    shapes = res2net_shapes((2, 0, 0, 0), offset_channels=(offsets, 0, 0, 0))
    weights = block_weights(shapes, 0 if first else 1)
    sizes = {"bottleneck_channels": 12, "scales": 4, "stride": stride, "norm": "FrozenBN"}
    channels = 8 if first else 16
    block = Res2NetBlock(channels, 16, **sizes, offset_channels=offsets // 9, modulated=offsets == 27)
    fill(block, weights)
    x = torch.randn(2, channels, 6, 8)
    expected = Original(weights, stride).bottle2neck(x, first)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)
