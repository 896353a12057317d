"""Whole detectors of MMDetection: names, the tool, and what is refused."""

import logging
import shlex
from pathlib import Path

import clq
import mmdet_models
import pytest
import torch
from clq.checkpoint.checkpointer import Checkpointer
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
from mmdet_texts import changed, config_text


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
    python, script, *words = shlex.split(command)
    args = default_argument_parser().parse_args(words)
    assert (python, script) == ("python", "train_net.py")
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
    with pytest.raises(UserError, match=r"config has num_classes = 3, where its weights have 5 class channels"):
        convert({"meta": meta, "state_dict": detector(head=gfl_head(5))})


def test_the_config_counts_where_the_names_of_classes_disagree(convert, caplog):
    meta = {"CLASSES": ["a"] * 80, "config": config_text("CLQ_Head_align_iou_pred", classes=7)}
    _, _, keys = convert({"meta": meta, "state_dict": detector(head=clq_head(8))})
    assert keys["MODEL.CLQ.NUM_CLASSES"] == 7
    assert "has 80 names of classes (CLASSES in 2.x, dataset_meta in 3.x); its config's num_classes = 7" in caplog.text
    del meta["config"]
    with pytest.raises(
        UserError, match=r"its meta has 80 names of classes .*, where its weights have 8 class channels"
    ):
        convert({"meta": meta, "state_dict": detector(head=clq_head(8))})


def test_the_body_of_a_published_detector_is_told_from_its_weights(convert):
    shapes = res2net_shapes((3, 4, 23, 3), 64, 256, 26, offset_channels=(0, 0, 27, 27))
    _, (config,), keys = convert(detector(shapes, gfl_head(80), zero_weights))
    assert config == "configs/GFLV2/mmdet_gflv2_R_50_FPN_1x.yaml"
    assert keys["MODEL.CLQ.CONV_DIM"] == keys["MODEL.FPN.OUT_CHANNELS"] == WIDTH
    wanted = clq.setup_cfg(str(CONFIGS / "GFLV2/gflv2_R2_101_DCN_FPN_2x_ms.yaml"))
    ours = clq.setup_cfg(str(CONFIGS.parent / config), [word for pair in keys.items() for word in pair])
    assert ours.MODEL.RESNETS == wanted.MODEL.RESNETS
    assert ours.MODEL.BACKBONE == wanted.MODEL.BACKBONE


def test_the_config_in_a_checkpoint_is_compared_and_tells_how_it_is_tested(convert):
    weights, text = detector(), config_text("ATSSHead", CLASSES)
    assert "iou_threshold=0.6" in text and "num_outs=5" in text
    _, _, keys = convert(
        {"meta": {"config": text.replace("iou_threshold=0.6", "iou_threshold=0.5")}, "state_dict": weights}
    )
    assert keys["MODEL.CLQ.NMS_THRESH"] == 0.5
    assert "MODEL.CLQ.SCORE_THRESH" not in keys  # as in our config
    other = changed(text, {"num_outs=5": "num_outs=5, relu_before_extra_convs=True"})
    with pytest.raises(UserError, match=rf"{convert.path}: .*relu_before_extra_convs = True, where .*atss.* has False"):
        convert({"meta": {"config": other}, "state_dict": weights})
    with pytest.raises(UserError, match=rf"{convert.path}: the config in its meta .*; remove config"):
        convert({"meta": {"cfg": "..."}, "state_dict": weights})
