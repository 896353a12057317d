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
    R18,
    WIDTH,
    build_small,
    clq_head,
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
from mmdet_texts import config_text


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


# Config -> backbone, head, class of the head and version of MMDetection.
RESNEXT_DCN = resnet_shapes((3, 4, 23, 3), width=2, groups=4, offset_channels=(0, 27, 27, 27))
RES2NET_DCN = res2net_shapes(offset_channels=(0, 0, 18, 18))
DETECTORS = {
    "ATSS/mmdet_atss_R_50_FPN_1x R-18": (resnet18_shapes(), random_weights(head_shapes()), "ATSSHead", "2.x"),
    "GFL/mmdet_gfl_R_50_FPN_1x X-101 DCNv2": (RESNEXT_DCN, gfl_head(quality=False), "GFLHead", "2.x"),
    "GFLV2/mmdet_gflv2_R_50_FPN_1x R2-50 DCN": (RES2NET_DCN, gfl_head(CLASSES + 1), "GFocalHead", "3.x"),
    "VFNET/mmdet_vfnet_R_50_FPN_1x R2-50": (res2net_shapes(), vfnet_head(), "VFNetHead", "3.x"),
    "TOOD/mmdet_tood_R_50_FPN_1x R-50 DCN": (
        resnet_shapes(offset_channels=(18, 18, 18, 18)),
        tood_head(),
        "TOODHead",
        "2.x",
    ),
    "CLQ/mmdet_clq_R_101_FPN_2x_ms R-50": (resnet_shapes(), clq_head(CLASSES + 1), "CLQ_Head_align_iou_pred", "2.x"),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_the_tool_converts_whole_checkpoints_and_says_how_to_evaluate_them(name, tmp_path, run, capsys):
    body, head, kind, version = DETECTORS[name]
    weights, names = detector(body, head), ("a",) * CLASSES
    meta = {"CLASSES": names} if version == "2.x" else {"dataset_meta": {"classes": names}}
    meta["config" if version == "2.x" else "cfg"] = config_text(kind, CLASSES, version)
    torch.save({"meta": meta, "state_dict": weights}, tmp_path / "in.pth")
    assert run("tools/convert_weights.py", "mmdet", tmp_path / "in.pth", tmp_path / "out.pth") == 0
    summary, command = capsys.readouterr().out.splitlines()[-2:]
    assert f"{CLASSES} classes" in summary
    script, *words = shlex.split(command)
    args = default_argument_parser().parse_args(words)
    assert script == "train_net.py"
    assert args.eval_only
    assert args.config_file == f"configs/{name.split()[0]}.yaml"
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


# The published detectors at their size: head, number of convolutions, name of the head's class.
PUBLISHED = {
    "ATSS/mmdet_atss_R_50_FPN_1x": (lambda: random_weights(head_shapes(classes=80)), 4, "ATSSHead"),
    "GFL/mmdet_gfl_R_50_FPN_1x": (lambda: gfl_head(80, quality=False), 4, "GFLHead"),
    "GFLV2/mmdet_gflv2_R_50_FPN_1x": (lambda: gfl_head(81), 4, "GFocalHead"),  # 81: with one for the background
    "VFNET/mmdet_vfnet_R_50_FPN_1x": (lambda: vfnet_head(80), 3, "VFNetHead"),
    "TOOD/mmdet_tood_R_50_FPN_1x": (lambda: tood_head(80), 6, "TOODHead"),
    "CLQ/mmdet_clq_R_101_FPN_2x_ms": (lambda: clq_head(81), 4, "CLQ_Head_align_iou_pred"),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("key", ["config", "cfg", None])
def test_a_published_detector_needs_no_key_beside_its_config(name, key, convert, monkeypatch, caplog):
    make_head, depth, kind = PUBLISHED[name]
    monkeypatch.setattr(mmdet_models, "WIDTH", 256)
    monkeypatch.setattr(mmdet_models, "DEPTH", depth)
    blocks = (3, 4, 23, 3) if "R_101" in name else (3, 4, 6, 3)
    weights = detector(resnet_shapes(blocks, stem=64, res2=256, width=64), make_head(), zero_weights)
    meta = {key: config_text(kind, version="3.x" if key == "cfg" else "2.x")} if key else None
    converted, configs, keys = convert({"meta": meta, "state_dict": weights})
    assert (configs, keys) == ((f"configs/{name}.yaml",), {})
    (theirs,) = (value for key, value in weights.items() if key.endswith("_cls.weight"))
    assert torch.equal(converted["head.cls_logits.weight"], theirs[:80])
    assert ("has no config of its training" in caplog.text) == (key is None)


@pytest.mark.parametrize("meta", [{"CLASSES": ["a"] * 3}, {"dataset_meta": {"CLASSES": ("a",) * 3}}])
@pytest.mark.parametrize("head", [gfl_head, clq_head])
def test_the_background_is_told_from_the_names_of_classes(head, meta, convert):
    _, _, keys = convert({"meta": meta, "state_dict": detector(head=head(4))})
    assert keys["MODEL.CLQ.NUM_CLASSES"] == 3
    _, _, keys = convert({"meta": meta, "state_dict": detector(head=head(3))})
    assert keys["MODEL.CLQ.NUM_CLASSES"] == 3
    _, _, keys = convert({"meta": meta, "state_dict": detector(head=gfl_head(4, quality=False))})
    assert keys["MODEL.CLQ.NUM_CLASSES"] == 4  # only GFLv2's has the background
    with pytest.raises(UserError, match="has 4 class channels and no names of classes"):
        convert(detector(head=head(4)))


def test_the_background_is_told_from_the_number_of_classes_in_the_config(convert):
    meta = {"config": config_text("GFocalHead", classes=3)}
    _, _, keys = convert({"meta": meta, "state_dict": detector(head=gfl_head(4))})
    assert keys["MODEL.CLQ.NUM_CLASSES"] == 3
    with pytest.raises(UserError, match=r"num_classes = 3, where .* has 5"):
        convert({"meta": meta, "state_dict": detector(head=gfl_head(5))})


def test_the_body_of_a_published_detector_is_told_from_its_weights(convert):
    shapes = res2net_shapes((3, 4, 23, 3), 64, 256, 26, offset_channels=(0, 0, 27, 27))
    _, (config,), keys = convert(detector(shapes, gfl_head(80), zero_weights))
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
    "no ATSS, GFL, GFLv2, VFNet, TOOD or CLQ of MMDetection .its head has fcos_cls": {"bbox_head.fcos_cls.weight": ONE},
    "lqe_layer, of CLQ's authors' later head": {
        **{f"bbox_head.{layer}.weight": ONE for layer in ("conv_cls", "conv_reg", "conv_centerness", "lqe_layer")},
        "bbox_head.feature_alignment.conv_offset.weight": ONE,
    },
    r"2 weights .* missing: head\.align\.conv\.weight, head\.align\.offsets": detector(head=clq_head(80, align=False)),
    r"align\.offsets\.conv\.weight is of another shape": {
        **detector(head=clq_head(80)),
        "bbox_head.feature_alignment.conv_offset.weight": torch.ones(72, 5, 1, 1),
    },
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
        convert({"meta": {"config": config_text(kind)}, "state_dict": detector()})
