"""setup_cfg: what wins over what, and each mistake in one line that names the culprit."""

import clq
import pytest
import torch
from detectron2.modeling import build_model

CPU = ["MODEL.DEVICE", "cpu"]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes yaml files into the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(**files):
        for name, content in files.items():
            (tmp_path / f"{name}.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def refusal(*args):
    with pytest.raises(clq.UserError) as e:
        clq.setup_cfg(*args)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_overrides_win_over_the_file_and_the_file_over_its_base(write):
    write(
        base="VERSION: 2\nMODEL: {CLQ: {TOPK: 5, NUM_CONVS: 3, CONV_DIM: 96}}",
        own="_BASE_: base.yaml\nMODEL: {CLQ: {TOPK: 6, NUM_CONVS: 2}}",
    )
    c = clq.setup_cfg("own.yaml", ["MODEL.CLQ.TOPK", "7", *CPU]).MODEL.CLQ
    assert (c.TOPK, c.NUM_CONVS, c.CONV_DIM, c.NMS_THRESH) == (7, 2, 96, 0.6)


@pytest.mark.parametrize("value", ["['p3', 'p4']", ["p3", "p4"], ("p3", "p4")])
def test_an_override_may_be_text_or_what_it_stands_for(value):
    assert clq.setup_cfg(None, ("MODEL.CLQ.IN_FEATURES", value, *CPU)).MODEL.CLQ.IN_FEATURES == ["p3", "p4"]


def test_a_config_survives_being_saved(write):
    entries = [{"name": "config_saved", "json": "a.json", "images": "b"}]
    cfg = clq.setup_cfg(None, ["DATASETS.COCO_JSON", entries, "MODEL.CLQ.ALIGN.NAME", "learned", *CPU])
    cfg.freeze()
    write(saved=cfg.dump())
    again = clq.setup_cfg("saved.yaml")
    assert again.MODEL.CLQ == cfg.MODEL.CLQ and again.DATASETS == cfg.DATASETS


def test_a_config_saved_while_clq_followed_the_papers_text_means_what_it_meant(write, caplog):
    cls = "QUALITY: {NAME: iou, TARGET: pred_box}, ALIGN: {NAME: learned}, BOX: {CODING: delta, WEIGHT_BY: none}"
    write(own="MODEL: {CLQ: {" + cls + "}}\nVERSION: 2", now="MODEL: {CLQ: {QUALITY: {NAME: iou}}}\nVERSION: 2")
    c = clq.setup_cfg("own.yaml", CPU).MODEL.CLQ
    assert (c.QUALITY.TOWER, c.ALIGN.OFFSET_GROUPS, c.ALIGN.GRADIENT) == ("reg", 1, 0.0)
    assert (c.BOX.CODING, c.BOX.WEIGHT_FLOOR, c.TOPK_COUNTS) == ("delta", 1.0, "pairs")
    assert "TARGET" not in c.QUALITY and "own.yaml: saved by an older version" in caplog.text
    c = clq.setup_cfg("now.yaml", CPU).MODEL.CLQ
    assert (c.QUALITY.TOWER, c.ALIGN.OFFSET_GROUPS, c.ALIGN.GRADIENT) == ("cls", 4, 1.0)
    write(both="_BASE_: now.yaml\nMODEL: {CLQ: {QUALITY: {TARGET: anchor, TOWER: cls}}}\nVERSION: 2")
    assert "both.yaml: there is no config key MODEL.CLQ.QUALITY.TARGET any more" in refusal("both.yaml")
    assert "MODEL.CLQ.QUALITY.TOWER" in refusal(None, ["MODEL.CLQ.QUALITY.TARGET", "pred_box"])


@pytest.mark.parametrize(
    "content, message",
    [
        ("MODEL: {CLQ: {TOPKK: 3}}\nVERSION: 2", "no config key MODEL.CLQ.TOPKK; did you mean MODEL.CLQ.TOPK"),
        (
            "MODEL: {CLQ: {TOPK: nine}}\nVERSION: 2",
            "MODEL.CLQ.TOPK must be of type int, such as 9; this is of type str",
        ),
        ("MODEL: {CLQ: }\nVERSION: 2", "MODEL.CLQ is a group of keys (NUM_CLASSES, "),
        ("MODEL: [", "not valid yaml"),
        (b"\xff\xfe\x00", "not valid yaml"),
        ("", "not nested KEY: value pairs"),
        ("- MODEL", "not nested KEY: value pairs"),
        ("MODEL: !!python/tuple [a]", "only plain yaml is read"),
        ("_BASE_: gone.yaml", "gone.yaml cannot be read"),
        ("_BASE_: ./", "cannot be read"),
        ("_BASE_: own.yaml", "is its own _BASE_"),
        ("_BASE_: 3", "not nested KEY: value pairs"),
        ("VERSION: 3", "Cannot merge a v3 config"),
    ],
)
def test_a_broken_file_is_refused(write, content, message):
    write(own=content)
    said = refusal("own.yaml")
    assert said.startswith("own.yaml: ") and message in said


@pytest.mark.parametrize("tag", ["_BASE_: evil.yaml", "MODEL: !!python/object/apply:os.mkdir [made]"])
def test_nothing_in_a_file_or_its_base_executes(write, tmp_path, tag):
    write(own=tag, evil="MODEL: !!python/object/apply:os.mkdir [made]")
    assert "only plain yaml is read" in refusal("own.yaml")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.WEIGHTS"], "in pairs, KEY VALUE; got 1 words: MODEL.WEIGHTS"),
        (["MODEL.CLQ.TOPK", 9, 3], "got 3 words: MODEL.CLQ.TOPK 9 3"),
        (["MODEL.CLQ.TOPK.X", "3"], "no config key MODEL.CLQ.TOPK.X; did you mean MODEL.CLQ.TOPK"),
        ([3, "3"], "no config key 3"),
        (["MODEL.CLQ.BOX.LOSS_WEIGHT", "2"], "must be of type float, such as 2.0; this is of type int"),
        (["MODEL.CLQ", "2"], "MODEL.CLQ is a group of keys"),
        (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE gpu: no such device; use cuda"),
        (["MODEL.DEVICE", "None"], "MODEL.DEVICE None: no such device"),
    ],
)
def test_a_broken_override_is_refused(opts, message):
    assert message in refusal(None, opts)


@pytest.mark.parametrize("gpus, asked, given", [(0, "cuda", "cpu"), (0, "cuda:1", "cpu"), (2, "cuda:1", "cuda:1")])
def test_cuda_becomes_the_cpu_only_where_there_is_none(monkeypatch, gpus, asked, given):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert given == clq.setup_cfg(None, ["MODEL.DEVICE", asked]).MODEL.DEVICE


def test_a_gpu_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "MODEL.DEVICE cuda:2: this machine has 2 GPU(s)" in refusal(None, ["MODEL.DEVICE", "cuda:2"])


@pytest.mark.parametrize(
    "key, value",
    [
        ("ANCHOR_SCALE", 0.0),
        ("ANCHOR_OFFSET", 1.0),
        ("PRIOR_PROB", 1.0),
        ("TOPK", 0),
        ("BOX.WEIGHTS", [10.0, 10.0]),
        ("BOX.REG_MAX", 0),
        ("CLS.BETA", 0.5),
        ("SCORE_THRESH", 1.0),
        ("NMS_THRESH", float("nan")),
        ("NMS_THRESH", float("inf")),
        ("BOX.LOSS_WEIGHT", float("inf")),
        ("BOX.WEIGHTS", [10.0, 10.0, 5.0, float("inf")]),
        ("IN_FEATURES", ["p3", "p9"]),
        ("IN_FEATURES", []),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(key, value):
    opts = ["MODEL.META_ARCHITECTURE", "CLQ", "MODEL.BACKBONE.NAME", "build_dense_resnet_fpn_backbone", *CPU]
    opts += ["MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"], "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]]
    with pytest.raises(clq.UserError) as e, torch.device("meta"):
        build_model(clq.setup_cfg(None, [*opts, f"MODEL.CLQ.{key}", value]))
    assert str(e.value).startswith(f"MODEL.CLQ.{key} {value}: ")


def test_data_sets_on_the_command_line_are_written_as_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = clq.setup_cfg(None, ["DATASETS.COCO_JSON", "[{name: on_the_line, json: b.json, images: c}]", *CPU])
    absolute = {"name": "on_the_line", "json": str(tmp_path / "b.json"), "images": str(tmp_path / "c")}
    assert [absolute] == cfg.DATASETS.COCO_JSON
    with pytest.raises(clq.UserError, match=r"DATASETS\.COCO_JSON .*write '\[\{name: a"):
        clq.setup_cfg(None, ["DATASETS.COCO_JSON", "[{name: a", *CPU])
