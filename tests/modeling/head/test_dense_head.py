import math

import pytest
import torch
from clq.modeling.box_coding import DeltaCoder, DistributionCoder
from clq.modeling.head.dense_head import DenseHead, HeadPerLevel
from clq.modeling.head.feature_alignment import FeatureAlignment, GeometricOffsets, LearnedOffsets
from clq.modeling.head.quality import ConvQualityBranch
from clq.modeling.head.towers import Layers, separate_towers
from clq.modeling.meta_arch.clq import flatten
from torch import nn

SIZES = [(5, 7), (3, 4), (2, 2), (1, 2), (1, 1)]


def make_head(coder=None, **changes):
    torch.manual_seed(0)
    coder = coder or DeltaCoder()
    layers = Layers(changes.pop("conv_dim", 64), changes.pop("num_convs", 2), changes.pop("norm", "GN"))
    towers = separate_towers(32, layers)
    quality = changes.pop("quality", ConvQualityBranch(towers.out_channels, "reg"))
    return DenseHead(towers=towers, num_levels=5, num_classes=3, coder=coder, quality=quality, **changes)


def make_features(n=2):
    torch.manual_seed(1)
    return [torch.randn(n, 32, h, w, requires_grad=True) for h, w in SIZES]


@pytest.mark.parametrize("coder", [DeltaCoder(), DistributionCoder(7)], ids=["delta", "distribution"])
@pytest.mark.parametrize("quality", [True, False])
def test_shapes(coder, quality):
    branch = ConvQualityBranch(64, "cls") if quality else None
    out = make_head(coder, quality=branch, align=FeatureAlignment(32, GeometricOffsets()))(make_features())
    assert [tuple(x.shape) for x in out.cls_logits] == [(2, 3, *s) for s in SIZES]
    assert [tuple(x.shape) for x in out.box_pred] == [(2, coder.num_channels, *s) for s in SIZES]
    assert [tuple(x.shape) for x in out.quality_logits] == ([(2, 1, *s) for s in SIZES] if quality else [])
    flat = flatten(out)
    r = sum(h * w for h, w in SIZES)
    assert flat.cls_logits.shape == (2, r, 3)
    assert flat.box_pred.shape == (2, r, coder.num_channels)
    assert flat.quality_logits.shape == (2, r, 1) if quality else flat.quality_logits is None


def test_a_new_head_predicts_the_prior_and_the_anchor():
    head = make_head(prior_prob=0.01)
    out = head(make_features())
    assert head.cls_logits.bias.tolist() == pytest.approx([-math.log(99)] * 3)
    assert torch.cat([x.flatten() for x in out.cls_logits]).sigmoid().mean().item() == pytest.approx(0.01, rel=0.1)
    for level in out.box_pred:
        assert level.abs().max() < 1.0  # deltas times 10: within a tenth of the anchor
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.2)
            assert module.bias is None or module is head.cls_logits or not module.bias.any()


def test_each_level_scales_its_box_predictions_and_nothing_else():
    head, features = make_head(), make_features()
    before = head(features)
    with torch.no_grad():
        head.scales.copy_(torch.tensor([1.0, 2, 3, 4, 5]))
    after = head(features)
    for i in range(5):
        torch.testing.assert_close(after.box_pred[i], before.box_pred[i] * (i + 1))
        assert torch.equal(after.cls_logits[i], before.cls_logits[i])
        assert torch.equal(after.quality_logits[i], before.quality_logits[i])


def test_without_scales_of_levels_there_is_no_such_parameter():
    head, plain = make_head(), make_head(level_scales=False)
    assert set(dict(head.named_parameters())) - set(dict(plain.named_parameters())) == {"scales"}
    torch.testing.assert_close(plain(make_features()).box_pred, head(make_features()).box_pred)  # scales begin at 1


@pytest.mark.parametrize("tower", ["cls", "reg"])
def test_levels_share_the_towers_and_the_quality_reads_the_tower_of_its_branch(tower):
    branch = ConvQualityBranch(64, tower)
    head, feature = make_head(quality=branch, align=FeatureAlignment(32, GeometricOffsets())), make_features()[0]
    head.eval()
    same = head([feature] * 5)
    for name in ("cls_logits", "box_pred", "quality_logits"):
        first, *others = getattr(same, name)
        assert all(torch.equal(first, x) for x in others)
    boxes = head.coder.decode(same.box_pred[0].permute(0, 2, 3, 1), head.anchor, 1.0).permute(0, 3, 1, 2)
    towers = {"cls": head.cls_tower(head.align(feature, boxes)), "reg": head.reg_tower(feature)}
    conv = nn.functional.conv2d(towers[tower], branch.weight, branch.bias, padding=1)
    torch.testing.assert_close(same.quality_logits[0], conv)
    torch.testing.assert_close(same.cls_logits[0], head.cls_logits(towers["cls"]))


def test_heads_per_level_share_nothing_and_each_predicts_its_own_level():
    heads = [make_head(), make_head(level_scales=False)]
    nn.init.normal_(heads[1].cls_logits.bias)
    both, features = HeadPerLevel(heads), make_features()[:2]
    out = both(features)
    for level in range(2):
        alone = heads[level]([features[level]])
        for field, own in zip(out, alone, strict=True):
            assert len(field) in (0, 2)
            assert not own or torch.equal(field[level], own[0])
    out.cls_logits[0].sum().backward()
    assert {name.split(".")[1] for name, p in both.named_parameters() if p.grad is not None} == {"0"}


class Recorder(nn.Module):
    """An alignment that returns its features and keeps the boxes that it was given."""

    def forward(self, features, boxes):
        self.boxes = boxes
        return features


@pytest.mark.parametrize("scale", [8.0, 5.0])
def test_the_alignment_gets_the_regressed_box_in_cells_relative_to_its_location(scale):
    head = make_head(align=Recorder(), anchor_scale=scale)
    nn.init.zeros_(head.box_pred.weight)
    head.box_pred.bias.data = torch.tensor([10.0, 0.0, 5 * math.log(2), 0.0]) / 2  # the scale below doubles them
    head.scales.data.fill_(2.0)
    head(make_features())
    # The anchor, `scale` cells wide, moved right by its width and doubled in width.
    expected = torch.tensor([1 - 1.0, -0.5, 1 + 1.0, 0.5]) * scale
    torch.testing.assert_close(head.align.boxes, expected.view(1, 4, 1, 1).expand(2, 4, 1, 1))


@pytest.mark.parametrize(
    ("offsets", "reaches"), [(GeometricOffsets(), False), (LearnedOffsets(), True), (LearnedOffsets(4, 0.0), False)]
)
@pytest.mark.parametrize("backend", ["torchvision", "grid_sample", "gather"])
def test_gradient_flows_from_the_classes_into_the_boxes_where_the_offsets_let_it(offsets, reaches, backend):
    head = make_head(align=FeatureAlignment(32, offsets, backend))
    features = make_features()
    sum(x.square().sum() for x in head(features).cls_logits).backward()
    touched = {name.split(".")[0] for name, p in head.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"cls_tower", "cls_logits", "align"} | ({"reg_tower", "box_pred", "scales"} if reaches else set())
    assert all(p.grad.any() for p in head.align.parameters())
    assert all(f.grad.any() for f in features)


def test_the_class_tower_sees_the_aligned_feature():
    head, features = make_head(align=FeatureAlignment(32, GeometricOffsets())), make_features()
    align, box = head.align, head.box_pred
    nn.init.zeros_(box.weight)
    box.bias.data = torch.tensor([0.0, 0.0, 5 * math.log(3 / 8), 5 * math.log(3 / 8)])  # 3 x 3 cells: plain taps
    expected = head.cls_logits(head.cls_tower(align.conv(features[0]).relu()))
    torch.testing.assert_close(head(features).cls_logits[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("align", [None, GeometricOffsets, LearnedOffsets])
def test_under_autocast_boxes_are_float32_and_all_outputs_are_close(align):
    head, features = (
        make_head(align=align and FeatureAlignment(32, align()), num_convs=1, conv_dim=32),
        make_features(1),
    )
    expected = flatten(head(features))
    with torch.autocast("cpu", torch.bfloat16):
        out = flatten(head(features))
    assert out.box_pred.dtype == torch.float32
    for ours, exact in zip(out[:3], expected[:3], strict=True):
        torch.testing.assert_close(ours.float(), exact, atol=0.02 * exact.abs().max().item(), rtol=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["GN", "", "BN"])
def test_norms_and_a_single_cell(norm, training):
    """A single cell of one image, where each group of GN has one value, works with every norm.

    A single value has no variance, so BN uses its running statistics there and leaves them as they are. Convolutions
    have a bias exactly where there is no normalization.
    """
    head = make_head(norm=norm, conv_dim=32).train(training)
    before = {name: value.clone() for name, value in head.named_buffers()}
    out = head([torch.randn(1, 32, 1, 1)])
    assert all(x[0].isfinite().all() for x in out[:3])
    assert all(torch.equal(value, before[name]) for name, value in head.named_buffers())
    biases = [m.bias is not None for m in head.cls_tower if isinstance(m, nn.Conv2d)]
    assert biases == [norm == ""] * 2


@pytest.mark.parametrize(("norm", "channels", "message"), [("GN", 48, "48 channels"), ("XN", 32, "XN is no norm")])
def test_wrong_norms_are_refused(norm, channels, message):
    with pytest.raises(ValueError, match=message):
        make_head(norm=norm, conv_dim=channels)


def test_without_convolutions_the_predictors_read_the_features():
    out = make_head(num_convs=0)(make_features())
    assert out.cls_logits[0].shape == (2, 3, 5, 7)
