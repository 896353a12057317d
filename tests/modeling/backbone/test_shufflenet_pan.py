import clq
import pytest
import torch
import torchvision
from clq.checkpoint.torchvision_weights import torchvision_to_detectron2
from clq.errors import UserError
from clq.modeling.backbone.shufflenet_pan import SHUFFLENETS, LitePAN, ShuffleNetV2
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone
from torchvision.models.feature_extraction import create_feature_extractor

PAN = [
    *("MODEL.BACKBONE.NAME", "build_shufflenet_pan_backbone", "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.FPN.OUT_CHANNELS", 16),
]
STAGES = ["MODEL.FPN.IN_FEATURES", ["stage2", "stage3", "stage4"], "MODEL.CLQ.IN_FEATURES", ["p3", "p4", "p5"]]


@pytest.mark.parametrize("name", SHUFFLENETS)
def test_every_backbone_is_torchvisions_weight_for_weight(name):
    with torch.device("meta"):
        ours = ShuffleNetV2(name).state_dict()
        theirs = torchvision_to_detectron2(torchvision.models.get_model(name, weights=None).state_dict())
    ours = {f"backbone.bottom_up.{k}": v.shape for k, v in ours.items() if not k.endswith("num_batches_tracked")}
    assert ours == {k: v.shape for k, v in theirs.items()}


def test_features_are_torchvisions():
    torch.manual_seed(0)
    model = torchvision.models.shufflenet_v2_x0_5(weights=None).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    backbone = ShuffleNetV2("shufflenet_v2_x0_5").eval()
    prefix = "backbone.bottom_up."
    weights = torchvision_to_detectron2(model.state_dict())
    backbone.load_state_dict({k[len(prefix) :]: v for k, v in weights.items()}, strict=False)
    names = {"maxpool": "stem", "stage2": "stage2", "stage3": "stage3", "stage4": "stage4"}
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = backbone(image), create_feature_extractor(model, names)(image)
    assert found.keys() == expected.keys()
    for name, feature in found.items():
        assert torch.equal(feature, expected[name])
        shape = backbone.output_shape()[name]
        assert feature.shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)


def test_every_activation_is_the_one_asked_for():
    opts = [*PAN, *STAGES, "MODEL.SHUFFLENET.ACTIVATION"]
    kinds = {}
    for name in ("relu", "leaky_relu"):
        modules = list(build_backbone(clq.setup_cfg(None, [*opts, name])).modules())
        kinds[name] = [m for m in modules if isinstance(m, (torch.nn.ReLU, torch.nn.LeakyReLU))]
    assert {type(m) for m in kinds["relu"]} == {torch.nn.ReLU}
    assert {(type(m), m.negative_slope) for m in kinds["leaky_relu"]} == {(torch.nn.LeakyReLU, 0.1)}
    # One in the stem, three in each of three units with a stride, two in each of the thirteen others.
    assert len(kinds["relu"]) == len(kinds["leaky_relu"]) == 1 + 3 * 3 + 2 * 13


def test_frozen_norms_keep_what_was_loaded_while_the_convolutions_learn():
    torch.manual_seed(0)
    opts = [*PAN, *STAGES, "MODEL.SHUFFLENET.NAME", "shufflenet_v2_x0_5", "MODEL.SHUFFLENET.NORM"]
    learning = build_backbone(clq.setup_cfg(None, [*opts, "BN"]))
    for module in learning.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    frozen = build_backbone(clq.setup_cfg(None, [*opts, "FrozenBN"]))
    found = frozen.load_state_dict(learning.state_dict(), strict=False)
    assert not found.missing_keys
    assert all(key.endswith(".num_batches_tracked") for key in found.unexpected_keys)

    # In training it computes what batch norms compute in evaluation, whatever is in the batch.
    images = 3 + 2 * torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = learning.eval()(images)
    frozen.train()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    out = frozen(images)
    for level, feature in out.items():
        torch.testing.assert_close(feature, expected[level], rtol=1e-4, atol=1e-4)
    sum(x.square().mean() for x in out.values()).backward()
    torch.optim.SGD(frozen.parameters(), lr=0.1).step()

    convolutions = {name for name, module in frozen.named_modules() if isinstance(module, torch.nn.Conv2d)}
    changed = {name.rpartition(".")[0] for name, value in frozen.state_dict().items() if not value.equal(before[name])}
    assert changed == convolutions


class Constants(Backbone):
    """Three levels of 4x4, 2x2 and 1x1 cells, each of one channel and one value."""

    size_divisibility = 4

    def forward(self, x):
        return {f"f{i}": x.new_full((1, 1, 4 >> i, 4 >> i), value) for i, value in enumerate((1.0, 10.0, 100.0))}

    def output_shape(self):
        return {f"f{i}": ShapeSpec(channels=1, stride=1 << i) for i in range(3)}


def test_the_pyramid_adds_down_and_then_up():
    pan = LitePAN(Constants(), ["f0", "f1", "f2"], 1)
    for conv in pan.laterals:
        torch.nn.init.ones_(conv.weight)
    out = pan(torch.zeros(1, 3, 4, 4))
    # Down: 100, 110, 111. Up: 111, 110 + 111, 100 + 221.
    assert {name: x.unique().tolist() for name, x in out.items()} == {"p0": [111.0], "p1": [221.0], "p2": [321.0]}
    assert [x.shape[-1] for x in out.values()] == [4, 2, 1]
    assert pan.size_divisibility == 4


def test_a_ramp_stays_a_ramp():
    """Resizing aligns the centres of cells, so a slope of 1/2 per fine cell is one of 1 per coarse cell."""
    coarse = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    fine = torch.zeros(1, 1, 8, 8)
    resized = clq.modeling.backbone.shufflenet_pan._resized(coarse, fine)
    assert resized[0, 0, 0, 1:-1].tolist() == pytest.approx([0.25, 0.75, 1.25, 1.75, 2.25, 2.75])
    back = clq.modeling.backbone.shufflenet_pan._resized(resized, coarse)
    assert back[0, 0, 0, 1:-1].tolist() == pytest.approx([1, 2])


@pytest.mark.parametrize("stem", [False, True])
def test_from_a_config_every_parameter_learns(stem):
    opts = [*PAN, *STAGES, "MODEL.SHUFFLENET.NAME", "shufflenet_v2_x0_5"]
    if stem:
        opts += ["MODEL.FPN.IN_FEATURES", ["stem", "stage2"], "MODEL.CLQ.IN_FEATURES", ["p2", "p3"]]
    backbone = build_backbone(clq.setup_cfg(None, opts))
    out = backbone(torch.randn(2, 3, 64, 64))
    strides = [4, 8] if stem else [8, 16, 32]
    assert [tuple(x.shape) for x in out.values()] == [(2, 16, 64 // s, 64 // s) for s in strides]
    assert [s.stride for s in backbone.output_shape().values()] == strides
    sum(x.square().sum() for x in out.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("SHUFFLENET.NAME", "resnet50", "resnet50: not one of shufflenet_v2_x0_5"),
        ("SHUFFLENET.ACTIVATION", "gelu", "gelu: not one of relu, leaky_relu"),
        ("SHUFFLENET.NORM", "GN", "MODEL.SHUFFLENET.NORM GN: not one of BN, FrozenBN"),
        ("BACKBONE.FREEZE_AT", 2, "all convolutions of a ShuffleNet are trained"),
        ("FPN.IN_FEATURES", ["res3"], "name some of stem, stage2, stage3, stage4, in this order"),
        ("FPN.IN_FEATURES", ["stage3", "stage2"], "in this order"),
        ("FPN.IN_FEATURES", [], "name some of"),
        ("FPN.NORM", "BN", "MODEL.FPN.NORM BN, FUSE_TYPE sum: this pyramid adds, without norms"),
        ("FPN.FUSE_TYPE", "avg", "FUSE_TYPE avg: this pyramid adds"),
        ("CLQ.IN_FEATURES", ["p3", "p4"], "has the levels p3, p4, p5; name all of them"),
    ],
)
def test_wrong_settings_are_named(key, value, said):
    with pytest.raises(UserError, match=said):
        build_backbone(clq.setup_cfg(None, [*PAN, *STAGES, f"MODEL.{key}", value]))
