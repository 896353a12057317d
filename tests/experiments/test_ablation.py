import functools
import json
import re

import clq
import pytest
import torch
from clq.data.datasets import fill_num_classes
from clq.errors import UserError
from clq.experiments.ablation import Run, differences, loss_curves, mean_and_spread, parse_row, visible_gpus
from detectron2.modeling import build_model

ATSS, CLQ = "configs/ATSS/atss_R_50_FPN_1x.yaml", "configs/CLQ/clq_R_50_FPN_1x.yaml"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def test_a_row_takes_all_cells_of_its_config_and_nothing_else(tiny):
    row = parse_row(f"ours, twice={CLQ} MODEL.CLQ.BOX.LOSS_WEIGHT 2.5")
    assert row.name == "ours, twice"
    # The study sets other widths, which stay, and other cells, which the row overrides.
    study = ["MODEL.CLQ.CLS.LOSS", "focal", "MODEL.CLQ.BOX.CODING", "delta", "MODEL.CLQ.TOPK", 5]
    cfg = clq.setup_cfg(tiny, [*study, *row.opts]).MODEL.CLQ
    assert (cfg.CLS.LOSS, cfg.BOX.CODING, cfg.BOX.LOSS_WEIGHT, cfg.QUALITY.NAME) == ("qfl", "distribution", 2.5, "iou")
    assert (cfg.CONV_DIM, cfg.TOPK, cfg.BOX.WEIGHTS) == (32, 5, [10.0, 10.0, 5.0, 5.0])


@pytest.mark.parametrize(
    "name, kind, key, value",
    [
        ("retinanet", "RetinaNet", "RETINANET.SMOOTH_L1_LOSS_BETA", 0.0),
        ("fcos", "FCOS", "RETINANET.NORM", "GN"),
        ("faster_rcnn", "GeneralizedRCNN", "RPN.PRE_NMS_TOPK_TEST", 1000),
        ("mask_rcnn", "GeneralizedRCNN", "MASK_ON", True),
        ("cascade_rcnn", "GeneralizedRCNN", "ROI_HEADS.NAME", "CascadeROIHeads"),
    ],
)
def test_a_row_of_detectron2s_own_models(name, kind, key, value, tiny):
    """Its whole model is that of its config, in the study's body and widths and on the study's data and schedule."""
    path = f"configs/comparison/{name}_R_50_FPN_1x.yaml"
    study, cfg = clq.setup_cfg(tiny), clq.setup_cfg(tiny, parse_row(path).opts)
    assert kind == cfg.MODEL.META_ARCHITECTURE
    assert functools.reduce(getattr, key.split("."), cfg.MODEL) == value
    assert (cfg.SOLVER, cfg.DATASETS, cfg.INPUT, cfg.TEST) == (study.SOLVER, study.DATASETS, study.INPUT, study.TEST)
    own = clq.setup_cfg(path, ["MODEL.DEVICE", "cpu"]).MODEL
    # What is left of the study in its model: body and widths, and keys that such a model does not read.
    for group in ("WEIGHTS", "DEVICE", "CLQ"):
        own[group] = cfg.MODEL[group]
    own.FPN.OUT_CHANNELS, own.BACKBONE.FREEZE_AT = 32, 0
    own.RESNETS.update(DEPTH=18, NORM="BN", RES2_OUT_CHANNELS=64)
    assert own == cfg.MODEL
    fill_num_classes(cfg)
    model = build_model(cfg)
    assert cfg.MODEL["ROI_HEADS" if kind == "GeneralizedRCNN" else "RETINANET"].NUM_CLASSES == 2
    assert model.backbone.bottom_up.stages[0][0].conv1.out_channels == 64
    # Back again: a row of CLQ in a study of such a model.
    assert clq.setup_cfg(path, ["MODEL.DEVICE", "cpu", *parse_row(CLQ).opts]).MODEL.META_ARCHITECTURE == "CLQ"


def test_a_row_of_an_unknown_model(tmp_path):
    (tmp_path / "x.yaml").write_text("MODEL: {META_ARCHITECTURE: ProposalNetwork}\nVERSION: 2")
    with pytest.raises(UserError, match=r"x\.yaml: MODEL\.META_ARCHITECTURE ProposalNetwork is not one of CLQ, FCOS"):
        parse_row(str(tmp_path / "x.yaml"))


def test_names_of_rows():
    assert parse_row(ATSS).name == "atss_R_50_FPN_1x"
    assert parse_row("MODEL.CLQ.TOPK 5").name == "MODEL.CLQ.TOPK 5"
    for text in (f"{ATSS} MODEL.WEIGHTS /a=b.pth", "MODEL.WEIGHTS /a=b.pth"):  # a = that names nothing
        row = parse_row(text)
        assert row.name in ("atss_R_50_FPN_1x", text) and row.opts[-2:] == ("MODEL.WEIGHTS", "/a=b.pth")
    assert parse_row(f"ours={CLQ} MODEL.WEIGHTS /a=b.pth").name == "ours"
    assert parse_row("B.yaml, alone=MODEL.CLQ.TOPK 5").name == "B.yaml, alone"
    with pytest.raises(UserError, match=r"--rows 'x=': write \[NAME=\]CONFIG"):
        parse_row("x=")
    with pytest.raises(UserError, match=r"gone\.yaml: no such config file"):
        parse_row("gone.yaml")


def test_differences_from_the_first_row(tiny):
    configs = {name: clq.setup_cfg(tiny, parse_row(path).opts) for name, path in (("ATSS", ATSS), ("CLQ", CLQ))}
    (changed,) = differences(configs).values()
    assert [d.split()[0] for d in changed] == [
        *("BOX.CODING", "BOX.WEIGHT_BY", "BOX.WEIGHT_FLOOR", "CLS.LOSS", "QUALITY.NAME", "ALIGN.NAME", "TOPK_COUNTS"),
    ]
    assert "QUALITY.NAME iou (centerness)" in changed

    paths = {x: f"configs/comparison/{x}_rcnn_R_50_FPN_1x.yaml" for x in ("faster", "cascade")}
    configs = {name: clq.setup_cfg(tiny, parse_row(path).opts) for name, path in {**paths, "CLQ": CLQ}.items()}
    assert differences(configs) == {
        "cascade": [
            "RPN.POST_NMS_TOPK_TRAIN 2000 (1000)",
            "ROI_HEADS.NAME CascadeROIHeads (StandardROIHeads)",
            "ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True (False)",
        ],
        "CLQ": ["META_ARCHITECTURE CLQ (GeneralizedRCNN)"],
    }


def test_mean_and_spread():
    assert mean_and_spread([40.0, 42.0, 47.0]) == "43.0 ± 3.6"
    assert mean_and_spread([0.4567], 3) == "0.457"
    assert mean_and_spread([1.0, float("nan")]) == "–"


def test_a_folder_is_of_one_run(tiny, tmp_path):
    Run(tiny, ("SEED", "1"), tmp_path).prepare()
    Run(tiny, ("SEED", "1"), tmp_path).prepare()
    with pytest.raises(UserError, match=f"{tmp_path}: holds a run with other settings"):
        Run(tiny, ("SEED", "2"), tmp_path).prepare()
    heir = tmp_path / "heir.yaml"  # the same file on another base
    heir.write_text(f"_BASE_: {tiny}\n")
    Run(str(heir), ("SEED", "1"), tmp_path).prepare()
    other = tmp_path / "other.yaml"
    other.write_text(f"_BASE_: {tiny}\nSOLVER: {{MAX_ITER: 99}}\n")
    heir.write_text(f"_BASE_: {other}\n")
    with pytest.raises(UserError, match="other settings"):
        Run(str(heir), ("SEED", "1"), tmp_path).prepare()


@pytest.mark.parametrize(
    "given, expected", [(None, ["0", "1"]), ("2,3", ["2", "3"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"])]
)
def test_only_visible_gpus_are_used(given, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == expected


def test_without_a_test_set_nothing_is_trained(tiny, tmp_path, run, capsys):
    argv = ["--config-file", tiny, "--output", tmp_path, "--rows", CLQ, "--opts", "DATASETS.TEST", "[]"]
    assert run("tools/ablate.py", *argv) == 2
    assert "DATASETS.TEST is empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_loss_curves(trained):
    curves = loss_curves(trained)
    assert set(curves) == {"loss_cls", "loss_box", "loss_dfl", "loss_quality", "total_loss"}
    iterations, values = zip(*curves["loss_box"], strict=True)
    assert list(iterations) == sorted(iterations) and values[-1] < values[0]


def test_losses_of_a_training_taken_up_again(tmp_path):
    """It went through iteration 1 twice, and was stopped in the middle of a line."""
    lines = ['{"iteration": 0, "loss": 4.0}', '{"iteration": 1, "loss": 3.0, "lr": 1.0}', '{"iteration": 2, "lo']
    lines += ['{"iteration": 1, "loss": 2.0}', '{"iteration": 2, "loss": 1.0}']
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    assert loss_curves(tmp_path) == {"loss": [(0, 4.0), (1, 2.0), (2, 1.0)]}


def test_a_name_too_long_for_a_folder(tiny, tmp_path, run, capsys):
    row = " ".join(["MODEL.CLQ.BOX.LOSS_WEIGHT 2.0"] * 10)
    assert run("tools/ablate.py", "--config-file", tiny, "--output", tmp_path / "out", "--rows", row) == 2
    assert "is too long a name for a folder; give it a NAME=" in capsys.readouterr().err


def test_the_tool(tiny, tmp_path, run, capsys):
    """Rows, one stopped and taken up again; called once more it trains nothing."""
    rows = [f"ATSS={ATSS}", f"CLQ={CLQ}", "Faster R-CNN=configs/comparison/faster_rcnn_R_50_FPN_1x.yaml"]
    argv = ["--config-file", tiny, "--output", tmp_path, "--seeds", 4, "--jobs", 2, "--speed-images", 1, "--rows"]
    opts = ["--opts", "SOLVER.MAX_ITER", 2, "MODEL.CLQ.SCORE_THRESH", 0.001]
    assert run("tools/ablate.py", *argv, rows[0], "broken=MODEL.CLQ.CLS.LOSS none", *opts) == 1
    out = capsys.readouterr().out
    assert "broken/seed_4: failed, see" in out and "1 of 2 trainings failed" in out
    table = (tmp_path / "table.md").read_text()  # of what is complete
    assert "| ATSS |" in table and "broken" not in table
    (stdout,) = tmp_path.glob("broken/seed_4/stdout.txt")
    assert "MODEL.CLQ.CLS.LOSS: none is not one of focal, qfl" in stdout.read_text()
    stdout.parent.rename(tmp_path / "elsewhere")

    assert run("tools/ablate.py", *argv, *rows, *opts) == 0
    out = capsys.readouterr().out
    assert "CLQ, against ATSS: BOX.CODING distribution (delta); BOX.WEIGHT_BY score (centerness)" in out
    assert "Faster R-CNN, against ATSS: META_ARCHITECTURE GeneralizedRCNN (CLQ)" in out
    assert set(re.findall(r"(\w+)/seed_4: started", out)) == {"CLQ", "Faster_R_CNN"}  # ATSS was done
    table = (tmp_path / "table.md").read_text()
    for row in ("ATSS", "CLQ", "Faster R-CNN"):
        assert re.search(rf"^\| {row} \|(.*\|){{12}}$", table, re.M)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["CLQ"]["images/s"] > 0
    flops = [results[row]["GFLOPs (multiply-adds, 96x96)"] * 1e9 for row in ("ATSS", "CLQ")]
    # On 12x12 + 6x6 + 3x3 locations the alignment, its offsets in four groups, and 17 bins a side for one delta.
    assert flops[1] - flops[0] == pytest.approx(189 * (32 * 32 * 9 + 4 * 4 * 18 + 32 * 9 * 4 * 16))
    assert (tmp_path / "losses.png").stat().st_size > 10000
    assert (tmp_path / "forest.png").stat().st_size > 1000
    difference = results["CLQ"]["AP less ATSS's"]
    assert difference["value"] == pytest.approx(
        results["CLQ"]["seeds"]["4"]["AP"] - results["ATSS"]["seeds"]["4"]["AP"]
    )
    assert difference["low"] <= difference["value"] <= difference["high"] and difference["seeds"] == 1
    assert re.search(r"^CLQ - ATSS: ±\d+\.\d\d AP with 1 seed\(s\), of the images alone", out, re.M)
    assert "ATSS" in results and "AP less ATSS's" not in results["ATSS"]

    assert run("tools/ablate.py", *argv, *rows, "--reference", "CLQ", *opts) == 0
    assert "started" not in capsys.readouterr().out
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["ATSS"]["AP less CLQ's"]["value"] == pytest.approx(-difference["value"])


def test_a_reference_that_is_no_row(tiny, tmp_path, run, capsys):
    argv = ["--config-file", tiny, "--output", tmp_path / "out", "--reference", "GFL", "--rows", f"CLQ={CLQ}"]
    assert run("tools/ablate.py", *argv) == 2
    assert "--reference GFL: not one of CLQ." in capsys.readouterr().err
