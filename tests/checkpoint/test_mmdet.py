"""Whole checkpoints of MMDetection: which are converted, and which are refused in one line."""

import shlex
from pathlib import Path

import mmdet_models
import pytest
import torch
from clq.checkpoint.checkpointer import Checkpointer
from clq.checkpoint.mmdet import convert_checkpoint
from clq.errors import UserError
from detectron2.engine import default_argument_parser
from mmdet_models import (
    CLASSES,
    build_small,
    clq_head,
    detector,
    gfl_head,
    head_shapes,
    random_weights,
    res2net_shapes,
    resnet18_shapes,
    resnet_shapes,
    tood_head,
    vfnet_head,
    zero_weights,
)
from mmdet_texts import changed, config_text

RESNEXT_DCN = resnet_shapes((3, 4, 23, 3), width=2, groups=4, offset_channels=(0, 27, 27, 27))
RES2NET_DCN = res2net_shapes(offset_channels=(0, 0, 18, 18))
# Config -> backbone, head, class of the head and version of MMDetection.
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
def test_the_tool_converts_whole_checkpoints_and_prints_how_to_evaluate_them(name, tmp_path, run, capsys):
    backbone, head, kind, version = DETECTORS[name]
    weights, names = detector(backbone, head), ("a",) * CLASSES
    meta = {"CLASSES": names} if version == "2.x" else {"dataset_meta": {"classes": names}}
    meta["config" if version == "2.x" else "cfg"] = config_text(kind, CLASSES, version)
    torch.save({"meta": meta, "state_dict": weights}, tmp_path / "in.pth")
    assert run("tools/convert_weights.py", "mmdet", tmp_path / "in.pth", tmp_path / "out.pth") == 0
    summary, command = capsys.readouterr().out.splitlines()[-2:]
    assert f"{CLASSES} classes" in summary
    program, command, *words = shlex.split(command)
    args = default_argument_parser().parse_args(words)
    assert (program, command) == ("clq", "eval")
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


# The published detectors at full size: head, number of convolutions, class of the head.
PUBLISHED = {
    "ATSS/mmdet_atss_R_50_FPN_1x": (lambda: random_weights(head_shapes(classes=80)), 4, "ATSSHead"),
    "GFL/mmdet_gfl_R_50_FPN_1x": (lambda: gfl_head(80, quality=False), 4, "GFLHead"),
    "GFLV2/mmdet_gflv2_R_50_FPN_1x": (lambda: gfl_head(81), 4, "GFocalHead"),  # 81 includes the background
    "VFNET/mmdet_vfnet_R_50_FPN_1x": (lambda: vfnet_head(80), 3, "VFNetHead"),
    "TOOD/mmdet_tood_R_50_FPN_1x": (lambda: tood_head(80), 6, "TOODHead"),
    "CLQ/mmdet_clq_R_101_FPN_2x_ms": (lambda: clq_head(81), 4, "CLQ_Head_align_iou_pred"),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("key", ["config", "cfg", None])
def test_a_published_detector_needs_its_config_and_no_further_key(name, key, convert, monkeypatch, caplog):
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
def test_the_class_names_show_whether_there_is_a_background(head, meta, convert):
    _, _, keys = convert({"meta": meta, "state_dict": detector(head=head(4))})
    assert keys["MODEL.CLQ.NUM_CLASSES"] == 3
    _, _, keys = convert({"meta": meta, "state_dict": detector(head=head(3))})
    assert keys["MODEL.CLQ.NUM_CLASSES"] == 3
    _, _, keys = convert({"meta": meta, "state_dict": detector(head=gfl_head(4, quality=False))})
    assert keys["MODEL.CLQ.NUM_CLASSES"] == 4  # GFL has no background
    with pytest.raises(UserError, match="has 4 class channels and no class names"):
        convert(detector(head=head(4)))


def test_the_number_of_classes_in_the_config_shows_whether_there_is_a_background(convert):
    meta = {"config": config_text("GFocalHead", classes=3)}
    _, _, keys = convert({"meta": meta, "state_dict": detector(head=gfl_head(4))})
    assert keys["MODEL.CLQ.NUM_CLASSES"] == 3
    with pytest.raises(UserError, match=r"config has num_classes = 3, but its weights have 5 class channels"):
        convert({"meta": meta, "state_dict": detector(head=gfl_head(5))})


def test_the_config_decides_if_the_class_names_disagree(convert, caplog):
    meta = {"CLASSES": ["a"] * 80, "config": config_text("CLQ_Head_align_iou_pred", classes=7)}
    _, _, keys = convert({"meta": meta, "state_dict": detector(head=clq_head(8))})
    assert keys["MODEL.CLQ.NUM_CLASSES"] == 7
    assert "has 80 class names (CLASSES in 2.x, dataset_meta in 3.x); num_classes = 7 of its config" in caplog.text
    del meta["config"]
    with pytest.raises(UserError, match=r"its meta has 80 class names .*, but its weights have 8 class channels"):
        convert({"meta": meta, "state_dict": detector(head=clq_head(8))})


def test_the_config_in_a_checkpoint_is_compared_and_its_test_settings_become_keys(convert):
    weights, text = detector(), config_text("ATSSHead", CLASSES)
    assert "iou_threshold=0.6" in text and "num_outs=5" in text
    _, _, keys = convert(
        {"meta": {"config": text.replace("iou_threshold=0.6", "iou_threshold=0.5")}, "state_dict": weights}
    )
    assert keys["MODEL.CLQ.NMS_THRESH"] == 0.5
    assert "MODEL.CLQ.SCORE_THRESH" not in keys  # equal to our config
    other = changed(text, {"num_outs=5": "num_outs=5, relu_before_extra_convs=True"})
    with pytest.raises(UserError, match=rf"{convert.path}: .*relu_before_extra_convs = True, but .*atss.* has False"):
        convert({"meta": {"config": other}, "state_dict": weights})
    with pytest.raises(UserError, match=rf"{convert.path}: the config in its meta .*; remove config"):
        convert({"meta": {"cfg": "..."}, "state_dict": weights})


def without(part, weights=None):
    return {key: value for key, value in (weights or detector()).items() if part not in key}


ONE = torch.ones(1)
REFUSED = {
    "is not ATSS, GFL, GFLv2, VFNet, TOOD or CLQ .* .its head has fcos_cls": {"bbox_head.fcos_cls.weight": ONE},
    "lqe_layer, a layer of the later head of CLQ's authors": {
        **{f"bbox_head.{layer}.weight": ONE for layer in ("conv_cls", "conv_reg", "conv_centerness", "lqe_layer")},
        "bbox_head.feature_alignment.conv_offset.weight": ONE,
    },
    "is CLQ without feature alignment .* train it with configs/ablations/clq_wo_align": detector(
        head=clq_head(80, align=False)
    ),
    r"1 weights .* missing: head\.align\.offsets\.conv\.weight; give": without(
        "conv_offset", detector(head=clq_head(80))
    ),
    r"align\.offsets\.conv\.weight has another shape": {
        **detector(head=clq_head(80)),
        "bbox_head.feature_alignment.conv_offset.weight": torch.ones(72, 5, 1, 1),
    },
    "holds no weights; give a checkpoint of MMDetection": {},
    "it has no bbox_head": {"roi_head.fc.weight": ONE},
    "no counterpart here: neck.fpn_convs.5": {"neck.fpn_convs.5.conv.weight": ONE, **detector()},
    "no counterpart here: backbone.stem.0.weight": {"backbone.stem.0.weight": ONE, **detector()},  # a ResNet-v1d
    "no counterpart here: bbox_head.cls_convs.1.conv.conv_offset": {
        "bbox_head.cls_convs.1.conv.conv_offset.weight": ONE,
        **detector(),
    },
    "weights and plain values only": {**detector(), "hooks": Path("x")},
    "its backbone has 5 blocks in layer3": detector(resnet_shapes((3, 4, 5, 3))),
    "several groups": detector(resnet_shapes(offset_channels=(0, 36, 36, 36))),
    r"counterpart here: 'neck\.\\nx', neck\.0, .*, neck\.8, and 41 more; give": {
        "neck.\nx": ONE,
        **{f"neck.{i}": ONE for i in range(50)},
        **detector(),
    },
    "holds a list": [1],
    'holds a list as "state_dict"': {"state_dict": [1]},
    "holds 3, which is not a weight": {"state_dict": {3: ONE}},
    "holds 'epoch', which is not a weight": {**detector(), "epoch": 12},
    r"scales\.2\.scale is of shape \[2\], not one number": {**detector(), "bbox_head.scales.2.scale": torch.ones(2)},
    "its weights have shapes that no detector has": {**detector(), "bbox_head.atss_cls.weight": torch.ones(7)},
    "lacks backbone.fpn_lateral3.weight": without("neck."),
    "lacks head.cls_logits.weight": without("atss_cls.weight"),
    "lacks res2.0.conv2.weight": without("backbone.layer1"),
    r"1 weights of the detector are missing: head\.scales; give the checkpoint of the whole detector\.": without(
        "scales"
    ),
    r"2 weights .* missing: head\.quality_pred\.0\.bias, head": without("reg_conf.0", detector(head=gfl_head(80))),
    r"head\.scales has another shape .* \[4\] instead of \[5\]": without("scales.4"),
    r"1 of its weights are not finite: head\.box_pred\.bias; the training diverged or .* download it again\.": {
        **detector(),
        "bbox_head.atss_reg.bias": torch.tensor([0.0, 1.0, float("nan"), 2.0]),
    },
}


@pytest.mark.parametrize("why", REFUSED)
def test_other_checkpoints_are_refused(why, convert):
    with pytest.raises(UserError, match=f"{convert.path}: .*{why}") as e:
        convert(REFUSED[why])
    assert len(str(e.value).splitlines()) == 1
    with pytest.raises(UserError, match=r"gone\.pth: no such file"):
        convert_checkpoint("gone.pth")


@pytest.mark.parametrize("kind", ["PAAHead", "LADHead", "mmdet.models.dense_heads.PAAHead"])
def test_another_detector_with_the_same_layers_is_recognized_by_its_config(kind, convert):
    with pytest.raises(UserError, match=f"its config has {kind.split('.')[-1]}, which is not supported"):
        convert({"meta": {"config": config_text(kind)}, "state_dict": detector()})
    convert({"meta": {"config": config_text("ATSSHead", 7)}, "state_dict": detector()})  # the right config


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_another_precision_become_float32(dtype, convert, caplog):
    weights = detector()
    weights["bbox_head.atss_cls.bias"] = torch.tensor([0.5, -2.0, 0, 1, 2, 3, 4], dtype=dtype)
    converted, _, _ = convert(weights)
    assert {w.dtype for w in converted.values()} == {torch.float32}
    assert converted["head.cls_logits.bias"].tolist() == [0.5, -2, 0, 1, 2, 3, 4]
    assert f"holds weights in {str(dtype).removeprefix('torch.')}, which are converted to float32" in caplog.text
