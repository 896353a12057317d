"""Heads with converted weights compute what MMDetection's heads do."""

import clq
import torch
from clq.modeling.box_coding import DeltaCoder, DistributionCoder, LinearDistanceCoder, LogDistanceCoder
from clq.modeling.head.feature_alignment import FeatureAlignment, LearnedOffsets
from clq.modeling.head.quality import ConvQualityBranch, DGQPBranch, ProbabilityMapBranch
from clq.modeling.head.refinement import SampledBoxes, StarRefinement
from clq.modeling.head.towers import interactive_towers
from clq.modeling.scoring import joint_score
from mmdet_models import (
    DEPTH,
    WIDTH,
    clq_head,
    gfl_head,
    head_shapes,
    load,
    make_head,
    random_weights,
    tood_head,
    vfnet_head,
)
from torch.nn import functional as F
from torchvision.ops import deform_conv2d


def tood_of_mmdet(w, feature, scale):
    """The outputs of MMDetection's TOODHead on one level: scores, and boxes XYXY in units of the stride."""

    def conv(name, x, **more):
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=w[f"{name}.weight"].shape[-1] // 2, **more)

    def norm(name, x):
        return F.relu(F.group_norm(x, 32, w[f"{name}.gn.weight"], w[f"{name}.gn.bias"]))

    layers = [feature]
    for i in range(DEPTH):
        layers.append(norm(f"inter_convs.{i}", F.conv2d(layers[-1], w[f"inter_convs.{i}.conv.weight"], padding=1)))
    x, sides = torch.cat(layers[1:], 1), {}
    for task in ("cls_decomp", "reg_decomp"):
        attention = conv(f"{task}.layer_attention.0", x.mean((2, 3), keepdim=True)).relu()
        attention = conv(f"{task}.layer_attention.2", attention).sigmoid().repeat_interleave(WIDTH, 1)
        reduced = F.conv2d(x * attention, w[f"{task}.reduction_conv.conv.weight"])
        sides[task] = norm(f"{task}.reduction_conv", reduced)
    prob = conv("cls_prob_module.2", conv("cls_prob_module.0", x).relu())
    scores = (conv("tood_cls", sides["cls_decomp"]).sigmoid() * prob.sigmoid()).sqrt()
    left, top, right, bottom = (conv("tood_reg", sides["reg_decomp"]).exp() * scale).unbind(1)
    rows, cols = torch.meshgrid(*(torch.arange(float(n)) for n in feature.shape[2:]), indexing="ij")
    boxes = torch.stack((cols - left, rows - top, cols + right, rows + bottom), 1)
    offsets = conv("reg_offset_module.2", conv("reg_offset_module.0", x).relu())
    sampled = deform_conv2d(boxes, offsets, torch.ones(4, 1, 1, 1))  # each channel at a different location
    bad = (sampled[:, :2] > sampled[:, 2:]).any(1, keepdim=True)
    return scores, torch.where(bad, boxes, sampled)


def test_a_tood_head_computes_what_the_original_does(caplog):
    torch.manual_seed(0)
    weights, coder = tood_head(), LinearDistanceCoder()
    wide = DEPTH * WIDTH
    parts = {"quality": ProbabilityMapBranch(wide, WIDTH), "refine": SampledBoxes(wide, WIDTH)}
    head = make_head(coder, interactive_towers, **parts)
    load(head, clq.convert_mmdet(weights))
    assert not caplog.records
    features = [torch.randn(2, WIDTH, 6 - i, 7 - i) for i in range(5)]
    with torch.no_grad():
        out = head(features)
        for level, feature in enumerate(features):
            scores, boxes = tood_of_mmdet(weights, feature, weights[f"scales.{level}.scale"])
            ours = joint_score(out.cls_logits[level], out.quality_logits[level], 0.5, 0.5).log_p.exp()
            torch.testing.assert_close(ours, scores, atol=1e-5, rtol=1e-4)
            h, w = feature.shape[2:]
            here = torch.cartesian_prod(torch.arange(float(h)), torch.arange(float(w))).flip(1).repeat(1, 2)
            found = coder.decode(out.box_pred[level].permute(0, 2, 3, 1).flatten(1, 2), here, 1.0)
            torch.testing.assert_close(found, boxes.permute(0, 2, 3, 1).flatten(1, 2), atol=1e-4, rtol=1e-4)
    assert (out.box_pred[0] < 0).any()  # negative distances, which only the sampling can give


def head_of_mmdet(weights, feature, level):
    """The outputs of MMDetection's ATSS head: class logits, deltas, centerness logits."""
    towers = {}
    for tower in ("cls", "reg"):
        x = feature
        for i in range(DEPTH):
            x = F.conv2d(x, weights[f"{tower}_convs.{i}.conv.weight"], padding=1)
            gn = (weights[f"{tower}_convs.{i}.gn.{name}"] for name in ("weight", "bias"))
            x = F.relu(F.group_norm(x, 32, *gn))
        towers[tower] = x

    def predict(name, x):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    reg = predict("atss_reg", towers["reg"]) * weights[f"scales.{level}.scale"]
    return predict("atss_cls", towers["cls"]), reg, predict("atss_centerness", towers["reg"])


def test_an_atss_head_computes_what_the_original_does():
    torch.manual_seed(0)
    weights = random_weights(head_shapes())
    head = make_head(DeltaCoder(), quality=ConvQualityBranch(WIDTH, "reg"))
    load(head, clq.convert_mmdet(weights))
    features = [torch.randn(2, WIDTH, 6 - i, 7 - i) for i in range(5)]
    with torch.no_grad():
        for level, (feature, *ours) in enumerate(zip(features, *head(features)[:3], strict=True)):
            for mine, theirs in zip(ours, head_of_mmdet(weights, feature, level), strict=True):
                torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-4)


def clq_of_mmdet(w, feature, level):
    """The outputs of the head of CLQ's authors: class logits, box logits, quality logits."""

    def tower(name, x):
        for i in range(DEPTH):
            x = F.conv2d(x, w[f"{name}_convs.{i}.conv.weight"], padding=1)
            x = F.relu(F.group_norm(x, 32, w[f"{name}_convs.{i}.gn.weight"], w[f"{name}_convs.{i}.gn.bias"]))
        return x

    def predict(name, x):
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)

    reg = predict("clq_reg", tower("reg", feature)) * w[f"scales.{level}.scale"]
    bins = reg.unflatten(1, (4, 17)).softmax(2)  # left, top, right, bottom
    distances = (bins * torch.arange(17.0).view(1, 1, 17, 1, 1)).sum(2)
    offsets = F.conv2d(distances, w["feature_alignment.conv_offset.weight"])
    aligned = deform_conv2d(feature, offsets, w["feature_alignment.conv_adaption.weight"], padding=1).relu()
    cls = tower("cls", aligned)
    return predict("clq_cls", cls), reg, predict("retina_iou", cls)


def test_a_clq_head_computes_what_the_original_does(caplog):
    torch.manual_seed(0)
    weights, coder = clq_head(), DistributionCoder(16)
    parts = {
        "quality": ConvQualityBranch(WIDTH, "cls"),
        "align": FeatureAlignment(WIDTH, LearnedOffsets()),
    }
    head = make_head(coder, **parts)
    load(head, clq.convert_mmdet(weights))
    assert not caplog.records
    features = [torch.randn(2, WIDTH, 6 - i, 7 - i) for i in range(5)]
    with torch.no_grad():
        for level, (feature, *ours) in enumerate(zip(features, *head(features)[:3], strict=True)):
            for mine, theirs in zip(ours, clq_of_mmdet(weights, feature, level), strict=True):
                torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-4)


def test_the_offsets_of_clq_read_the_box_instead_of_the_distances():
    theirs = torch.tensor([[1.0, 2.0, 3.0, 4.0], [-5.0, 6.0, -7.0, 8.0]])[:, :, None, None]
    weights = {"bbox_head.feature_alignment.conv_offset.weight": theirs}
    ours = clq.convert_mmdet(weights)["head.align.offsets.conv.weight"]
    assert ours.flatten(1).tolist() == [[-1.0, -2.0, 3.0, 4.0], [5.0, -6.0, -7.0, 8.0]]
    assert theirs[0, 0] == 1  # the input is not changed


def test_the_weights_of_a_gfl_head_fill_a_head_with_distributions(caplog):
    weights = gfl_head(quality=False)
    head = make_head(DistributionCoder(16))
    load(head, clq.convert_mmdet(weights))
    assert torch.equal(head.box_pred.weight, weights["gfl_reg.weight"])
    assert not caplog.records  # the values of the bins are constants


def test_the_weights_of_a_gflv2_head_fill_its_quality_branch(caplog):
    weights, coder = gfl_head(), DistributionCoder(16)
    head = make_head(coder, quality=DGQPBranch(coder))
    load(head, clq.convert_mmdet(weights))
    assert torch.equal(head.quality_pred[2].weight, weights["reg_conf.2.weight"])
    assert not caplog.records


def test_the_weights_of_a_vfnet_head_fill_its_refinement(caplog):
    weights = vfnet_head()
    head = make_head(LogDistanceCoder(), refine=StarRefinement(WIDTH, 5), box_norm="GN")
    load(head, clq.convert_mmdet(weights))
    assert torch.equal(head.refine.cls_align.conv.weight, weights["vfnet_cls_dconv.weight"])
    assert torch.equal(head.refine.reg_align.conv.weight, weights["vfnet_reg_refine_dconv.weight"])
    assert torch.equal(head.box_pred[1].weight, weights["vfnet_reg.weight"])
    assert head.refine.scales.tolist() == [weights[f"scales_refine.{i}.scale"].item() for i in range(5)]
    assert not caplog.records
