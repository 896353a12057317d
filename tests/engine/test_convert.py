"""Whole detectors of MMDetection: names, the tool, and what is refused."""

import logging
import shlex
from pathlib import Path

import clq
import mmdet_models
import pytest
import torch
from clq.engine.checkpoint import Checkpointer
from clq.engine.mmdet_checkpoint import convert_checkpoint
from clq.errors import UserError
from detectron2.engine import default_argument_parser
from mmdet_models import (
    CLASSES,
    CONFIGS,
    META,
    R18,
    TEXT,
    WIDTH,
    build_small,
    detector,
    gfl_head,
    head_shapes,
    load,
    random_weights,
    res2net_shapes,
    resnet18_shapes,
    resnet_shapes,
    tood_head,
    vfnet_head,
    zero_weights,
)


def test_a_whole_detector_fills_a_model_of_its_size(caplog):
    torch.manual_seed(0)
    weights, model = detector(resnet18_shapes()), build_small("ATSS/mmdet_atss_R_50_FPN_1x.yaml", *R18)
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
    weights = detector()
    converted = clq.convert_mmdet({"meta": {"epoch": 12}, "state_dict": weights})
    expected = clq.convert_mmdet(weights)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[k], expected[k]) for k in expected)


# What is converted -> its body, its head, and the classes that its class layer has.
RESNEXT_DCN = resnet_shapes((3, 4, 23, 3), width=2, groups=4, offset_channels=(0, 27, 27, 27))
RES2NET_DCN = res2net_shapes(offset_channels=(0, 0, 18, 18))
DETECTORS = {
    "ATSS/mmdet_atss R-18": (resnet18_shapes(), random_weights(head_shapes()), "2.x"),
    "GFL/mmdet_gfl X-101 DCNv2": (RESNEXT_DCN, gfl_head(quality=False), "2.x"),
    "GFLV2/mmdet_gflv2 R2-50 DCN": (RES2NET_DCN, gfl_head(CLASSES + 1), "3.x"),
    "VFNET/mmdet_vfnet R2-50": (res2net_shapes(), vfnet_head(), "3.x"),
    "TOOD/mmdet_tood R-50 DCN": (resnet_shapes(offset_channels=(18, 18, 18, 18)), tood_head(), "2.x"),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_the_tool_converts_whole_checkpoints_and_says_how_to_evaluate_them(name, tmp_path, run, capsys):
    body, head, version = DETECTORS[name]
    weights = detector(body, head)
    torch.save({"meta": META[version], "state_dict": weights}, tmp_path / "in.pth")
    assert run("tools/convert_weights.py", "mmdet", tmp_path / "in.pth", tmp_path / "out.pth") == 0
    summary, command = capsys.readouterr().out.splitlines()[-2:]
    assert f"{CLASSES} classes" in summary
    script, *words = shlex.split(command)
    args = default_argument_parser().parse_args(words)
    assert script == "train_net.py"
    assert args.eval_only
    assert args.config_file == f"configs/{name.split()[0]}_R_50_FPN_1x.yaml"
    model = build_small(Path(args.config_file).relative_to("configs"), *args.opts)
    Checkpointer(model, strict=True).load(args.opts[args.opts.index("MODEL.WEIGHTS") + 1])
    (theirs,) = (value for key, value in weights.items() if key.endswith("_cls.bias"))
    assert torch.equal(model.head.cls_logits.bias, theirs[:CLASSES])
    assert torch.equal(model.backbone.bottom_up.res3[0].conv1.weight, weights["backbone.layer2.0.conv1.weight"])
    with torch.no_grad():
        (found,) = model([{"image": torch.rand(3, 64, 96) * 255}])
    assert found["instances"].scores.isfinite().all()

    assert run("tools/convert_weights.py", "mmdet", tmp_path / "in.pth", tmp_path / "out.pth") == 2
    assert f"{tmp_path}/out.pth: exists already" in capsys.readouterr().err


@pytest.fixture
def convert(tmp_path):
    """Converts a file with this content; its path is in ``convert.path``."""

    def convert(content):
        torch.save(content, convert.path)
        return convert_checkpoint(convert.path)

    convert.path = str(tmp_path / "a.pth")
    return convert


# The published R-50 rows at their size: head, number of convolutions, name of the head's class.
PUBLISHED = {
    "ATSS/mmdet_atss": (lambda: random_weights(head_shapes(classes=80)), 4, "ATSSHead"),
    "GFL/mmdet_gfl": (lambda: gfl_head(80, quality=False), 4, "GFLHead"),
    "GFLV2/mmdet_gflv2": (lambda: gfl_head(81), 4, "GFocalHead"),  # its authors': with a channel for the background
    "VFNET/mmdet_vfnet": (lambda: vfnet_head(80), 3, "VFNetHead"),
    "TOOD/mmdet_tood": (lambda: tood_head(80), 6, "TOODHead"),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("key", ["config", "cfg", None])
def test_a_published_detector_needs_no_key_beside_its_config(name, key, convert, monkeypatch, caplog):
    make_head, depth, kind = PUBLISHED[name]
    monkeypatch.setattr(mmdet_models, "WIDTH", 256)
    monkeypatch.setattr(mmdet_models, "DEPTH", depth)
    weights = detector(resnet_shapes(stem=64, res2=256, width=64), make_head(), zero_weights)
    converted, config, keys = convert({"meta": {key: TEXT.format(kind)} if key else None, "state_dict": weights})
    assert (config, keys) == (f"configs/{name}_R_50_FPN_1x.yaml", {})
    (theirs,) = (value for key, value in weights.items() if key.endswith("_cls.weight"))
    assert torch.equal(converted["head.cls_logits.weight"], theirs[:80])
    assert ("has no config of its training" in caplog.text) == (key is None)


@pytest.mark.parametrize("meta", [{"CLASSES": ["a"] * 3}, {"dataset_meta": {"CLASSES": ("a",) * 3}}])
def test_the_background_is_told_from_the_names_of_classes(meta, convert):
    _, _, keys = convert({"meta": meta, "state_dict": detector(head=gfl_head(4))})
    assert keys["MODEL.CLQ.NUM_CLASSES"] == 3
    _, _, keys = convert({"meta": meta, "state_dict": detector(head=gfl_head(3))})
    assert keys["MODEL.CLQ.NUM_CLASSES"] == 3
    _, _, keys = convert({"meta": meta, "state_dict": detector(head=gfl_head(4, quality=False))})
    assert keys["MODEL.CLQ.NUM_CLASSES"] == 4  # only GFLv2's has the background
    with pytest.raises(UserError, match="has 4 class channels and no names of classes"):
        convert(detector(head=gfl_head(4)))


def test_the_body_of_a_published_detector_is_told_from_its_weights(convert):
    shapes = res2net_shapes((3, 4, 23, 3), 64, 256, 26, offset_channels=(0, 0, 27, 27))
    _, config, keys = convert(detector(shapes, gfl_head(80), zero_weights))
    assert config == "configs/GFLV2/mmdet_gflv2_R_50_FPN_1x.yaml"
    assert keys["MODEL.CLQ.CONV_DIM"] == keys["MODEL.FPN.OUT_CHANNELS"] == WIDTH
    wanted = clq.setup_cfg(str(CONFIGS / "GFLV2/gflv2_R2_101_DCN_FPN_2x_ms.yaml"))
    ours = clq.setup_cfg(str(CONFIGS.parent / config), [word for pair in keys.items() for word in pair])
    assert ours.MODEL.RESNETS == wanted.MODEL.RESNETS
    assert ours.MODEL.BACKBONE == wanted.MODEL.BACKBONE


def without(part, weights=None):
    return {key: value for key, value in (weights or detector()).items() if part not in key}


ONE = torch.ones(1)
REFUSED = {
    "no ATSS, GFL, GFLv2, VFNet or TOOD of MMDetection .its head has fcos_cls": {"bbox_head.fcos_cls.weight": ONE},
    "it has no bbox_head": {"roi_head.fc.weight": ONE},
    "no place here: neck.fpn_convs.5": {"neck.fpn_convs.5.conv.weight": ONE, **detector()},
    "no place here: backbone.stem.0.weight": {"backbone.stem.0.weight": ONE, **detector()},  # a ResNet's own v1d
    "no place here: bbox_head.cls_convs.1.conv.conv_offset": {
        "bbox_head.cls_convs.1.conv.conv_offset.weight": ONE,
        **detector(),
    },
    "weights and plain values alone": {**detector(), "hooks": Path("x")},
    "with 5 blocks in layer3": detector(resnet_shapes((3, 4, 5, 3))),
    "several groups": detector(resnet_shapes(offset_channels=(0, 36, 36, 36))),
    "holds a list": [1],
    'holds a list as "state_dict"': {"state_dict": [1]},
    "holds 3, which is no weight": {"state_dict": {3: ONE}},
    "holds 'epoch', which is no weight": {**detector(), "epoch": 12},
    r"scales\.2\.scale is of shape \[2\], not one number": {**detector(), "bbox_head.scales.2.scale": torch.ones(2)},
    "shapes that no detector's are of": {**detector(), "bbox_head.atss_cls.weight": torch.ones(7)},
    "lacks backbone.fpn_lateral3.weight": without("neck."),
    "lacks head.cls_logits.weight": without("atss_cls.weight"),
    "lacks res2.0.conv2.weight": without("backbone.layer1"),
    r"1 weights of its detector are missing: head\.scales\.": without("scales"),
    r"2 weights .* missing: head\.quality_pred\.0\.bias, head": without("reg_conf.0", detector(head=gfl_head(80))),
    r"head\.scales is of another shape .* \[4\] instead of \[5\]": without("scales.4"),
    r"1 of its weights are not finite: head\.box_pred\.bias\.": {
        **detector(),
        "bbox_head.atss_reg.bias": torch.tensor([0.0, 1.0, float("nan"), 2.0]),
    },
}


@pytest.mark.parametrize("why", REFUSED)
def test_others_are_refused(why, convert):
    with pytest.raises(UserError, match=f"{convert.path}: .*{why}"):
        convert(REFUSED[why])
    with pytest.raises(UserError, match=r"gone\.pth: no such file"):
        convert_checkpoint("gone.pth")


@pytest.mark.parametrize("kind", ["PAAHead", "LADHead", "mmdet.models.dense_heads.PAAHead"])
def test_another_detector_of_the_same_layers_is_refused_by_its_config(kind, convert):
    with pytest.raises(UserError, match=f"is of {kind.split('.')[-1]}, which this project does not have"):
        convert({"meta": {"config": TEXT.format(kind)}, "state_dict": detector()})


@pytest.mark.parametrize(
    "ours, theirs",
    [
        ("to_rgb=True", "to_rgb=False"),
        ("to_rgb=True", "bgr_to_rgb=False"),
        ("std=[58.395, 57.12, 57.375]", "std=[1.0, 1.0, 1.0]"),
        ("'pytorch'", "'caffe'"),
        ("'on_output'", "'on_input'"),
        ("octave_base_scale=8", "octave_base_scale=4"),
        ("'anchor_free'", "'anchor_based'"),
    ],
)
def test_what_no_weight_shows_is_read_in_the_config(ours, theirs, convert):
    config = TEXT.format("ATSSHead")
    assert ours in config
    with pytest.raises(UserError, match=r"was trained with .*, which configs/ATSS/mmdet_atss_R_50_FPN_1x\.yaml does"):
        convert({"meta": {"config": config.replace(ours, theirs)}, "state_dict": detector()})
