"""MMDetection's names, written down from its own models, and what must become of them."""

import logging
import re
from pathlib import Path

import clq
import pytest
import torch
import torchvision
from clq.engine.checkpoint import Checkpointer
from clq.errors import UserError
from clq.modeling.box_coding import DeltaCoder, DistanceCoder, DistributionCoder, LTRBCoder
from clq.modeling.head import DenseHead
from clq.modeling.quality import DistributionQuality, ProbabilityMap, TowerQuality
from clq.modeling.refinement import SampledBoxes, StarRefinement
from clq.modeling.scoring import joint_score
from clq.modeling.towers import Layers, interactive_towers, separate_towers
from detectron2.modeling import build_model
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

CONFIGS = Path(__file__).parents[2] / "configs"
WIDTH, DEPTH, CLASSES = 32, 2, 7


def mmdet_head(name="atss", box_channels=4):
    """A random head: stacked convolutions with GN, predictors, one scalar scale a level."""
    shapes = {}
    for tower in ("cls", "reg"):
        for i in range(DEPTH):
            shapes[f"{tower}_convs.{i}.conv.weight"] = (WIDTH, WIDTH, 3, 3)
            shapes[f"{tower}_convs.{i}.gn.weight"] = shapes[f"{tower}_convs.{i}.gn.bias"] = (WIDTH,)
    outputs = {
        f"{name}_cls": CLASSES,
        f"{name}_reg": box_channels,
        **({"atss_centerness": 1} if name == "atss" else {}),
    }
    for layer, channels in outputs.items():
        shapes[f"{layer}.weight"], shapes[f"{layer}.bias"] = (channels, WIDTH, 3, 3), (channels,)
    shapes.update({f"scales.{i}.scale": () for i in range(5)})
    return {key: torch.randn(shape) for key, shape in shapes.items()}


def make_head(coder, towers=separate_towers, **parts):
    sizes = {"num_levels": 5, "num_classes": CLASSES}
    return DenseHead(towers=towers(WIDTH, Layers(WIDTH, DEPTH)), coder=coder, **sizes, **parts)


def tood_head():
    """MMDetection's TOODHead: keys, shapes, random values."""
    shapes = {"tood_cls": (CLASSES, WIDTH, 3, 3), "tood_reg": (4, WIDTH, 3, 3)}
    shapes |= {"cls_prob_module.0": (WIDTH // 4, DEPTH * WIDTH, 1, 1), "cls_prob_module.2": (1, WIDTH // 4, 3, 3)}
    shapes |= {"reg_offset_module.0": (WIDTH // 4, DEPTH * WIDTH, 1, 1), "reg_offset_module.2": (8, WIDTH // 4, 3, 3)}
    normalised = {f"inter_convs.{i}": (WIDTH, WIDTH, 3, 3) for i in range(DEPTH)}
    for task in ("cls_decomp", "reg_decomp"):
        shapes[f"{task}.layer_attention.0"] = (WIDTH // 8, DEPTH * WIDTH, 1, 1)
        shapes[f"{task}.layer_attention.2"] = (DEPTH, WIDTH // 8, 1, 1)
        normalised[f"{task}.reduction_conv"] = (WIDTH, DEPTH * WIDTH, 1, 1)
    weights = {f"scales.{i}.scale": torch.rand(()) + 0.5 for i in range(5)}
    for layer, shape in shapes.items():
        weights[f"{layer}.weight"], weights[f"{layer}.bias"] = torch.randn(shape) * 0.1, torch.randn(shape[0]) * 0.1
    for layer, shape in normalised.items():
        weights[f"{layer}.conv.weight"] = torch.randn(shape) * 0.1
        weights[f"{layer}.gn.weight"], weights[f"{layer}.gn.bias"] = torch.randn(WIDTH), torch.randn(WIDTH)
    return weights


def tood_of_mmdet(w, feature, scale):
    """What MMDetection's TOODHead computes on one level: scores, and boxes XYXY in cells of the map."""

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
    sampled = deform_conv2d(boxes, offsets, torch.ones(4, 1, 1, 1))  # each channel at its own place
    bad = (sampled[:, :2] > sampled[:, 2:]).any(1, keepdim=True)
    return scores, torch.where(bad, boxes, sampled)


def test_a_tood_head_computes_what_the_original_does(caplog):
    torch.manual_seed(0)
    weights, coder = tood_head(), LTRBCoder()
    wide = DEPTH * WIDTH
    parts = {"quality": ProbabilityMap(coder, wide, WIDTH), "refine": SampledBoxes(wide, WIDTH)}
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
    assert (out.box_pred[0] < 0).any()  # a side on the other side of its location: only sampling does that


def mmdet_detector():
    """ATSS on a ResNet-18: backbone., neck. and bbox_head."""
    body = torchvision.models.resnet18().state_dict()
    weights = {f"backbone.{k}": torch.rand_like(v.float()) for k, v in body.items() if not k.startswith("fc.")}
    for i, channels in enumerate((128, 256, 512)):
        weights[f"neck.lateral_convs.{i}.conv.weight"] = torch.randn(WIDTH, channels, 1, 1)
        weights[f"neck.lateral_convs.{i}.conv.bias"] = torch.randn(WIDTH)
    for i in range(5):
        weights[f"neck.fpn_convs.{i}.conv.weight"] = torch.randn(WIDTH, WIDTH, 3, 3)
        weights[f"neck.fpn_convs.{i}.conv.bias"] = torch.randn(WIDTH)
    return {**weights, **{f"bbox_head.{k}": v for k, v in mmdet_head().items()}}


def build_small(config="ATSS/atss_R_50_FPN_1x.yaml"):
    c = "MODEL.CLQ."
    opts = [c + "CONV_DIM", WIDTH, c + "NUM_CONVS", DEPTH, c + "NUM_CLASSES", CLASSES, "MODEL.FPN.OUT_CHANNELS", WIDTH]
    opts += ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "DATASETS.TRAIN", []]
    return build_model(clq.setup_cfg(str(CONFIGS / config), [*opts, "MODEL.DEVICE", "cpu"]))


def load(model, weights):
    """Loads all of it, into all of it."""
    found = model.load_state_dict(weights, strict=True)
    assert not found.missing_keys
    assert not found.unexpected_keys


def test_a_whole_detector_fills_a_model_of_its_size(caplog):
    torch.manual_seed(0)
    weights, model = mmdet_detector(), build_small()
    with caplog.at_level(logging.WARNING):
        converted = clq.convert_mmdet(weights)
    assert not caplog.records  # the batch counters have no place and need none
    load(model, converted)
    ours, pairs = (
        model.state_dict(),
        {
            "backbone.layer3.1.conv2.weight": "backbone.bottom_up.res4.1.conv2.weight",
            "backbone.layer2.0.downsample.1.running_var": "backbone.bottom_up.res3.0.shortcut.norm.running_var",
            "neck.lateral_convs.0.conv.weight": "backbone.fpn_lateral3.weight",
            "neck.fpn_convs.2.conv.bias": "backbone.fpn_output5.bias",
            "neck.fpn_convs.3.conv.weight": "backbone.top_block.p6.weight",
            "neck.fpn_convs.4.conv.weight": "backbone.top_block.p7.weight",
            "bbox_head.cls_convs.1.gn.bias": "head.cls_tower.1.norm.bias",
            "bbox_head.reg_convs.0.conv.weight": "head.reg_tower.0.weight",
            "bbox_head.atss_centerness.bias": "head.quality_pred.bias",
        },
    )
    for theirs, name in pairs.items():
        assert torch.equal(ours[name], weights[theirs]), name
    assert ours["head.scales"].tolist() == [weights[f"bbox_head.scales.{i}.scale"].item() for i in range(5)]


def head_of_mmdet(weights, feature, level):
    """What MMDetection's ATSS head computes: class logits, deltas, centerness logits."""
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


def test_a_converted_head_computes_what_the_original_does():
    torch.manual_seed(0)
    weights = mmdet_head()
    head = make_head(DeltaCoder(), quality=TowerQuality(DeltaCoder(), WIDTH, WIDTH))
    load(head, clq.convert_mmdet(weights))
    features = [torch.randn(2, WIDTH, 6 - i, 7 - i) for i in range(5)]
    with torch.no_grad():
        for level, (feature, *ours) in enumerate(zip(features, *head(features)[:3], strict=True)):
            for mine, theirs in zip(ours, head_of_mmdet(weights, feature, level), strict=True):
                torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-4)


def test_a_gfl_head_fits_distribution_coding(caplog):
    weights = {**mmdet_head("gfl", 4 * 17), "integral.project": torch.arange(17.0)}
    head = make_head(DistributionCoder(16))
    load(head, clq.convert_mmdet(weights))
    assert torch.equal(head.box_pred.weight, weights["gfl_reg.weight"])
    assert not caplog.records  # the bins' values are constants


def test_a_gflv2_head_brings_its_quality(caplog):
    weights = mmdet_head("gfl", 4 * 17)
    for layer, shape in (("0", (64, 20, 1, 1)), ("2", (1, 64, 1, 1))):
        weights[f"reg_conf.{layer}.weight"] = torch.randn(shape)
        weights[f"reg_conf.{layer}.bias"] = torch.randn(shape[0])
    coder = DistributionCoder(16)
    head = make_head(coder, quality=DistributionQuality(coder, WIDTH, WIDTH))
    load(head, clq.convert_mmdet(weights))
    assert torch.equal(head.quality_pred[2].weight, weights["reg_conf.2.weight"])
    assert not caplog.records


def test_a_vfnet_head_brings_its_refinement(caplog):
    weights = mmdet_head("vfnet", 4)
    for name in ("vfnet_reg_conv.conv", "vfnet_reg_refine_dconv", "vfnet_cls_dconv"):
        weights[f"{name}.weight"] = torch.randn(WIDTH, WIDTH, 3, 3)
    weights["vfnet_reg_conv.gn.weight"], weights["vfnet_reg_conv.gn.bias"] = torch.randn(WIDTH), torch.randn(WIDTH)
    weights["vfnet_reg_refine.weight"], weights["vfnet_reg_refine.bias"] = torch.randn(4, WIDTH, 3, 3), torch.randn(4)
    weights.update({f"scales_refine.{i}.scale": torch.tensor(float(i)) for i in range(5)})
    head = make_head(DistanceCoder(), refine=StarRefinement(WIDTH, 5), box_norm="GN")
    load(head, clq.convert_mmdet(weights))
    assert torch.equal(head.refine.cls_align.conv.weight, weights["vfnet_cls_dconv.weight"])
    assert torch.equal(head.refine.reg_align.conv.weight, weights["vfnet_reg_refine_dconv.weight"])
    assert torch.equal(head.box_pred[1].weight, weights["vfnet_reg.weight"])
    assert head.refine.scales.tolist() == [0, 1, 2, 3, 4]
    assert not caplog.records


def test_scales_keep_the_order_of_their_levels():
    weights = {f"scales.{i}.scale": torch.tensor([float(i)]) for i in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    assert clq.convert_mmdet(weights)["scales"].tolist() == list(range(11))


@pytest.mark.parametrize(
    "key",
    [
        "bbox_head.inter_convs.0.conv.conv_offset.weight",
        "bbox_head.reg_conf.0.gn.weight",
        "backbone.layer1.0.attention.weight",
        "neck.fpn_convs.5.conv.weight",
        "neck.lateral_convs.0.bn.weight",
        "roi_head.fc.weight",
        "atss_cls_old.weight",
    ],
)
def test_what_has_no_place_is_listed_and_left_out(key, caplog):
    with caplog.at_level(logging.WARNING):
        converted = clq.convert_mmdet({key: torch.zeros(1), "atss_cls.bias": torch.ones(2)})
    assert list(converted) == ["cls_logits.bias"]
    assert "no place for 1 weights" in caplog.text
    assert key in caplog.text


def test_a_whole_checkpoint_converts_like_its_weights():
    weights = mmdet_detector()
    converted = clq.convert_mmdet({"meta": {"epoch": 12}, "state_dict": weights})
    expected = clq.convert_mmdet(weights)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[k], expected[k]) for k in expected)


def gflv2_detector(classes):
    """A whole GFLv2 of its authors: one class channel more than there are classes."""
    head = {**mmdet_head("gfl", 4 * 17), "integral.project": torch.arange(17.0)}
    head["gfl_cls.weight"], head["gfl_cls.bias"] = torch.randn(classes + 1, WIDTH, 3, 3), torch.randn(classes + 1)
    for layer, shape in (("0", (64, 20, 1, 1)), ("2", (1, 64, 1, 1))):
        head[f"reg_conf.{layer}.weight"], head[f"reg_conf.{layer}.bias"] = torch.randn(shape), torch.randn(shape[0])
    body = {k: v for k, v in mmdet_detector().items() if not k.startswith("bbox_head.")}
    return {**body, **{f"bbox_head.{k}": v for k, v in head.items()}}


META = {"2.x": {"CLASSES": ("a",) * CLASSES}, "3.x": {"dataset_meta": {"classes": ("a",) * CLASSES}, "cfg": "..."}}


@pytest.mark.parametrize("version", META)
def test_the_tool_converts_whole_checkpoints(version, tmp_path, run, capsys):
    weights = gflv2_detector(CLASSES)
    torch.save({"meta": META[version], "state_dict": weights}, tmp_path / "in.pth")
    assert run("tools/convert_weights.py", "mmdet", tmp_path / "in.pth", tmp_path / "out.pth") == 0
    out = capsys.readouterr().out
    assert f"{CLASSES} classes" in out
    config = re.search(r"config: (\S+)", out)[1]
    model = build_small(Path(config).relative_to("configs"))
    Checkpointer(model, strict=True).load(str(tmp_path / "out.pth"))
    assert torch.equal(model.head.cls_logits.bias, weights["bbox_head.gfl_cls.bias"][:CLASSES])
    assert torch.equal(model.backbone.bottom_up.stem.conv1.weight, weights["backbone.conv1.weight"])

    assert run("tools/convert_weights.py", "mmdet", tmp_path / "in.pth", tmp_path / "out.pth") == 2
    assert f"{tmp_path}/out.pth: exists already" in capsys.readouterr().err


def test_each_row_is_told_by_its_head_and_others_are_refused(tmp_path):
    path = str(tmp_path / "a.pth")

    def convert(weights):
        torch.save(weights, path)
        return clq.engine.convert.convert_checkpoint(path)

    body = {k: v for k, v in mmdet_detector().items() if not k.startswith("bbox_head.")}
    gfl = {f"bbox_head.{k}": v for k, v in mmdet_head("gfl", 68).items()}
    assert convert(mmdet_detector())[1] == "configs/ATSS/atss_R_50_FPN_1x.yaml"
    assert convert({**body, **gfl})[1] == "configs/GFL/gfl_R_50_FPN_1x.yaml"
    tood = {f"bbox_head.{k}": v for k, v in tood_head().items()}
    assert convert({**body, **tood})[1] == "configs/TOOD/tood_R_50_FPN_1x.yaml"
    gfl["bbox_head.gfl_cls.weight"], gfl["bbox_head.gfl_cls.bias"] = torch.zeros(81, WIDTH, 3, 3), torch.zeros(81)
    assert len(convert({**body, **gfl})[0]["head.cls_logits.bias"]) == 81  # only GFLv2's has the background
    for weights, why in (
        (
            {"bbox_head.fcos_cls.weight": torch.zeros(1)},
            "no ATSS, GFL, GFLv2, VFNet or TOOD of MMDetection .its head has fcos_cls",
        ),
        ({"roi_head.fc.weight": torch.zeros(1)}, "it has no bbox_head"),
        ({**mmdet_detector(), "neck.fpn_convs.5.conv.weight": torch.zeros(1)}, "no place here: neck.fpn_convs.5"),
        ({**mmdet_detector(), "hooks": Path("x")}, "weights and plain values alone"),
        ([1], "holds a list"),
    ):
        with pytest.raises(UserError, match=f"{path}: .*{why}"):
            convert(weights)
    with pytest.raises(UserError, match=r"gone\.pth: no such file"):
        clq.engine.convert.convert_checkpoint("gone.pth")
