"""Checkpoints of NanoDet: names, layouts, the tool, and files that are refused."""

import shlex
from pathlib import Path

import clq
import pytest
import torch
from clq.checkpoint.checkpointer import Checkpointer
from clq.checkpoint.nanodet import convert_nanodet_checkpoint
from clq.errors import UserError
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from nanodet_models import BINS, CLASSES, nanodet_outputs, nanodet_weights

ROOT = Path(__file__).parents[2]
CONFIGS = "configs/NANODET/nanodet_m_320.yaml", "configs/NANODET/nanodet_m_416.yaml"


@pytest.fixture
def convert(tmp_path):
    """Converts a file with this content; its path is in ``convert.path``."""

    def convert(content):
        torch.save(content, convert.path)
        return convert_nanodet_checkpoint(convert.path)

    convert.path = str(tmp_path / "a.ckpt")
    return convert


def built(config, keys):
    opts = [word for pair in keys.items() for word in pair]
    return build_model(clq.setup_cfg(str(ROOT / config), ["MODEL.DEVICE", "cpu", *opts])).eval()


def prefixed(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


@pytest.mark.parametrize("name, stage2", [("shufflenet_v2_x0_5", 48), ("shufflenet_v2_x1_0", 116)])
def test_a_converted_detector_computes_what_the_original_does(name, stage2, convert):
    torch.manual_seed(0)
    weights = nanodet_weights(name=name, width=24, convs=1)
    converted, configs, keys = convert({"state_dict": weights})
    assert configs == CONFIGS
    expected = {"MODEL.CLQ.NUM_CLASSES": CLASSES, "MODEL.CLQ.NUM_CONVS": 1, "MODEL.CLQ.CONV_DIM": 24}
    expected["MODEL.FPN.OUT_CHANNELS"] = 24
    if name != "shufflenet_v2_x1_0":
        expected["MODEL.SHUFFLENET.NAME"] = name
    assert keys == expected
    model, images = built(configs[0], keys), torch.randn(2, 3, 64, 96)
    model.load_state_dict(converted, strict=True)
    assert model.backbone.bottom_up.output_shape()["stage2"].channels == stage2
    with torch.no_grad():
        features = model.backbone(images)
        found = model.head([features[level] for level in ("p3", "p4", "p5")])
        for level, theirs in enumerate(nanodet_outputs(weights, images, name, convs=1)):
            ours = torch.cat((found.cls_logits[level], found.box_pred[level]), 1)
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_weights_are_renamed_and_predictors_are_split(convert):
    torch.manual_seed(0)
    weights = nanodet_weights()
    converted, _, _ = convert(weights)
    pairs = {
        "backbone.conv1.0.weight": "backbone.bottom_up.conv1.0.weight",  # unchanged, because both networks get BGR
        "backbone.stage3.2.branch2.6.running_var": "backbone.bottom_up.stage3.2.branch2.6.running_var",
        "backbone.stage4.0.branch1.1.num_batches_tracked": "backbone.bottom_up.stage4.0.branch1.1.num_batches_tracked",
        "fpn.lateral_convs.2.conv.bias": "backbone.laterals.2.bias",
        "head.cls_convs.1.0.depthwise.weight": "head.heads.1.shared.0.0.weight",
        "head.cls_convs.1.0.dwnorm.running_mean": "head.heads.1.shared.0.0.norm.running_mean",
        "head.cls_convs.2.1.pointwise.weight": "head.heads.2.shared.1.1.weight",
        "head.cls_convs.2.1.pwnorm.bias": "head.heads.2.shared.1.1.norm.bias",
    }
    for theirs, ours in pairs.items():
        assert torch.equal(converted[ours], weights[theirs]), ours
    for part in ("weight", "bias"):
        both = weights[f"head.gfl_cls.1.{part}"]
        assert torch.equal(converted[f"head.heads.1.cls_logits.{part}"], both[:CLASSES])
        assert torch.equal(converted[f"head.heads.1.box_pred.{part}"], both[CLASSES:])
    # Splitting adds 3 weights and 3 biases. The 6 of gfl_reg and the values of the bins are left out.
    assert len(converted) == len(weights) + 6 - 6 - 1


def test_all_layouts_of_the_authors_files_are_read(convert):
    torch.manual_seed(0)
    weights, older = nanodet_weights(), nanodet_weights()
    expected, _, _ = convert(weights)
    lightning = {"pytorch-lightning_version": "1.2.7", "epoch": 3, "global_step": 9, "lr_schedulers": []}
    layouts = [
        {"epoch": 3, "iter": 9, "state_dict": weights, "optimizer": {"param_groups": []}},
        {"state_dict": prefixed("module.", weights)},
        {**lightning, "state_dict": prefixed("model.", weights)},
        {**lightning, "state_dict": prefixed("module.model.", weights)},
        {**lightning, "state_dict": {**prefixed("model.", older), **prefixed("avg_model.", weights)}},
    ]
    for layout in layouts:
        found, _, _ = convert(layout)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_number_of_bins_is_inferred(convert):
    _, _, keys = convert(nanodet_weights(bins=11))
    assert keys["MODEL.CLQ.BOX.REG_MAX"] == 10
    assert keys["MODEL.CLQ.NUM_CLASSES"] == CLASSES


def test_the_tool_prints_how_to_evaluate_at_both_sizes(tmp_path, run, capsys):
    torch.manual_seed(0)
    weights = nanodet_weights()
    torch.save({"state_dict": prefixed("model.", weights)}, tmp_path / "in.ckpt")
    assert run("tools/convert_weights.py", "nanodet", tmp_path / "in.ckpt", tmp_path / "out.pth") == 0
    summary, remark, *commands = capsys.readouterr().out.splitlines()[-4:]
    assert f"{CLASSES} classes" in summary
    assert remark.startswith("#")
    for config, command in zip(CONFIGS, commands, strict=True):
        program, name, *words = shlex.split(command)
        args = default_argument_parser().parse_args(words)
        assert (program, name, args.config_file) == ("clq", "eval", config)
    opts = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
    model = built(config, opts)
    Checkpointer(model, strict=True).load(opts["MODEL.WEIGHTS"])
    assert torch.equal(model.head.heads[0].cls_logits.bias, weights["head.gfl_cls.0.bias"][:CLASSES])
    with torch.no_grad():
        (found,) = model([{"image": torch.rand(3, 64, 96) * 255}])
    assert found["instances"].scores.isfinite().all()


def test_the_tool_refuses_other_sources(tmp_path, run, capsys):
    assert run("tools/convert_weights.py", "yolo", tmp_path / "in.pth", tmp_path / "out.pth") == 2
    assert "'mmdet', 'nanodet'" in capsys.readouterr().err


ONE = torch.ones(1)
WHOLE = nanodet_weights()


def without(part):
    return {key: value for key, value in WHOLE.items() if part not in key}


REFUSED = {
    r"is not NanoDet, .* no head.gfl_cls \(but backbone.conv1.0.weight\); give": {"backbone.conv1.0.weight": ONE},
    "holds no weights; give a checkpoint of NanoDet": {"state_dict": {}},
    r"no counterpart here: 'head\.\\nscale'; give a NanoDet-m": {**WHOLE, "head.\nscale": ONE},
    r"full convolutions .*\('head\.cls_convs\.0\.0\.conv\.x\\r'\)": {**WHOLE, "head.cls_convs.0.0.conv.x\r": ONE},
    "fpn.lateral_convs.0.conv.bias is of complex64": {
        **WHOLE,
        "fpn.lateral_convs.0.conv.bias": torch.ones(16, dtype=torch.complex64),
    },
    "head.gfl_cls.0.bias is of int64": {**WHOLE, "head.gfl_cls.0.bias": WHOLE["head.gfl_cls.0.bias"].long()},
    r"is NanoDet-Plus.*\(aux_head\.": {**WHOLE, "aux_head.cls_convs.0.conv.weight": ONE},
    r"is NanoDet-Plus.*\(fpn\.top_down": {**without("gfl_reg"), "fpn.top_down_blocks.0.blocks.0.conv.weight": ONE},
    r"another neck .*\(fpn\.trans\.": {**WHOLE, "fpn.trans.encoders.0.weight": ONE},
    r"another backbone than ShuffleNetV2 .*\(backbone\.stages\.": {**WHOLE, "backbone.stages.0.weight": ONE},
    r"a separate tower for boxes .*\(head\.reg_convs": {**WHOLE, "head.reg_convs.0.0.depthwise.weight": ONE},
    r"full convolutions .*\(head\.cls_convs\.0\.0\.conv": {
        **without("depthwise"),
        "head.cls_convs.0.0.conv.weight": ONE,
    },
    "no counterpart here: head.scale": {**WHOLE, "head.scale": ONE},
    "a.ckpt: backbone.bottom_up.stage2.4.branch1.0.weight is a weight that": {
        **WHOLE,
        "backbone.stage2.4.branch1.0.weight": ONE,
    },
    "have no box channels, but must have one number": {
        key: value for key, value in WHOLE.items() if "gfl_reg" not in key and "project" not in key
    },
    r"have \[32, 36\] box channels": {**WHOLE, "head.distribution_project.project": torch.ones(9)},
    "32 box channels of 32 in head.gfl_cls leave no classes": {
        **WHOLE,
        **{f"head.gfl_cls.0.{part}": WHOLE[f"head.gfl_cls.0.{part}"][:32] for part in ("weight", "bias")},
    },
    r"2 weights .* missing: backbone\.laterals\.1\.bias, backbone\.laterals\.1\.w": without("lateral_convs.1"),
    "lacks backbone.bottom_up.stage2.0.branch1.2.weight": without("backbone."),
    "lacks head.gfl_cls.0.weight": without("gfl_cls.0"),
    "has 9 channels in stage2.0.branch1.2.weight": {
        **WHOLE,
        "backbone.stage2.0.branch1.2.weight": torch.ones(9, 9, 1, 1),
    },
    r"shared\.0\.0\.weight has another shape .* \[16, 1, 5, 5\] instead of": {
        **WHOLE,
        **{f"head.cls_convs.{i}.{j}.depthwise.weight": torch.ones(16, 1, 5, 5) for i in range(3) for j in range(2)},
    },
    "its weights have shapes that no detector has": {**WHOLE, "head.gfl_cls.0.weight": torch.ones(4 * BINS + CLASSES)},
    r"1 of its weights are not finite: backbone\.laterals\.0\.bias; the training": {
        **WHOLE,
        "fpn.lateral_convs.0.conv.bias": torch.full((16,), float("inf")),
    },
    "holds a list": [1],
    "weights and plain values only.*'state_dict': c": {**WHOLE, "hooks": Path("x")},
    "holds 'epoch', which is not a weight; give a checkpoint of NanoDet": {**WHOLE, "epoch": 12},
}


@pytest.mark.parametrize("why", REFUSED)
def test_other_checkpoints_are_refused(why, convert):
    with pytest.raises(UserError, match=f"{why}") as e:
        convert(REFUSED[why])
    assert str(e.value).startswith(f"{convert.path}: ")
    assert "\n" not in str(e.value)


def test_a_missing_file_is_refused():
    with pytest.raises(UserError, match=r"^gone\.ckpt: no such file; give a checkpoint of NanoDet\.$"):
        convert_nanodet_checkpoint("gone.ckpt")
