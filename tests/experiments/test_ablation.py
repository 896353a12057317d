"""Variants of a study: their parts, their differences, and the tool that trains and compares them."""

import contextlib
import functools
import json
import re
import subprocess

import clq
import pytest
from clq.data.num_classes import fill_num_classes
from clq.errors import UserError
from clq.experiments import runs
from clq.experiments.ablation import differences, mean_and_spread, parse_study_variant
from detectron2.modeling import build_model

ATSS, CLQ = "configs/ATSS/atss_R_50_FPN_1x.yaml", "configs/CLQ/clq_R_50_FPN_1x.yaml"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def test_a_variant_takes_the_parts_of_its_config_and_nothing_else(tiny):
    variant = parse_study_variant(f"ours, twice={CLQ} MODEL.CLQ.BOX.LOSS_WEIGHT 2.5")
    assert variant.name == "ours, twice" and variant.config_file is None
    # The study sets other widths, which stay, and other parts, which the variant overrides.
    study = ["MODEL.CLQ.CLS.LOSS", "focal", "MODEL.CLQ.BOX.CODING", "delta", "MODEL.CLQ.TOPK", 5]
    cfg = clq.setup_cfg(tiny, [*study, *variant.opts]).MODEL.CLQ
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
def test_a_variant_can_be_one_of_detectron2s_own_models(name, kind, key, value, tiny):
    """Its whole model is that of its config, with the study's backbone, widths, data and schedule."""
    path = f"configs/comparison/{name}_R_50_FPN_1x.yaml"
    study, cfg = clq.setup_cfg(tiny), clq.setup_cfg(tiny, parse_study_variant(path).opts)
    assert kind == cfg.MODEL.META_ARCHITECTURE
    assert functools.reduce(getattr, key.split("."), cfg.MODEL) == value
    assert (cfg.SOLVER, cfg.DATASETS, cfg.INPUT, cfg.TEST) == (study.SOLVER, study.DATASETS, study.INPUT, study.TEST)
    own = clq.setup_cfg(path, ["MODEL.DEVICE", "cpu"]).MODEL
    # What comes from the study are the backbone, the widths, and keys that such a model does not read.
    for group in ("WEIGHTS", "DEVICE", "CLQ"):
        own[group] = cfg.MODEL[group]
    own.FPN.OUT_CHANNELS, own.BACKBONE.FREEZE_AT = 32, 0
    own.RESNETS.update(DEPTH=18, NORM="BN", RES2_OUT_CHANNELS=64)
    assert own == cfg.MODEL
    fill_num_classes(cfg)
    model = build_model(cfg)
    assert cfg.MODEL["ROI_HEADS" if kind == "GeneralizedRCNN" else "RETINANET"].NUM_CLASSES == 2
    assert model.backbone.bottom_up.stages[0][0].conv1.out_channels == 64
    # The other direction: a variant of CLQ with such a model as the study.
    assert clq.setup_cfg(path, ["MODEL.DEVICE", "cpu", *parse_study_variant(CLQ).opts]).MODEL.META_ARCHITECTURE == "CLQ"


def test_an_unknown_meta_architecture_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("MODEL: {META_ARCHITECTURE: ProposalNetwork}\nVERSION: 2")
    with pytest.raises(UserError, match=r"x\.yaml: MODEL\.META_ARCHITECTURE ProposalNetwork is not one of CLQ, FCOS"):
        parse_study_variant(str(tmp_path / "x.yaml"))


def test_a_config_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match=r"gone\.yaml: no such config file"):
        parse_study_variant("gone.yaml")


def test_differences_are_from_the_first_variant(tiny):
    configs = {
        name: clq.setup_cfg(tiny, parse_study_variant(path).opts) for name, path in (("ATSS", ATSS), ("CLQ", CLQ))
    }
    (changed,) = differences(configs).values()
    assert [d.split()[0] for d in changed] == [
        *("BOX.CODING", "BOX.WEIGHT_BY", "BOX.WEIGHT_FLOOR", "CLS.LOSS", "QUALITY.NAME", "ALIGN.NAME", "TOPK_COUNTS"),
    ]
    assert "QUALITY.NAME iou (centerness)" in changed

    paths = {x: f"configs/comparison/{x}_rcnn_R_50_FPN_1x.yaml" for x in ("faster", "cascade")}
    configs = {
        name: clq.setup_cfg(tiny, parse_study_variant(path).opts) for name, path in {**paths, "CLQ": CLQ}.items()
    }
    assert differences(configs) == {
        "cascade": [
            "RPN.POST_NMS_TOPK_TRAIN 2000 (1000)",
            "ROI_HEADS.NAME CascadeROIHeads (StandardROIHeads)",
            "ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True (False)",
        ],
        "CLQ": ["META_ARCHITECTURE CLQ (GeneralizedRCNN)"],
    }


def test_the_spread_is_the_unbiased_standard_deviation():
    assert mean_and_spread([40.0, 42.0, 47.0]) == "43.0 ± 3.6"
    assert mean_and_spread([0.4567], 3) == "0.457"
    assert mean_and_spread([1.0, float("nan")]) == "–"


def test_nothing_is_trained_without_a_test_set(tiny, tmp_path, run, capsys):
    argv = ["--config-file", tiny, "--output", tmp_path, "--variants", CLQ, "--opts", "DATASETS.TEST", "[]"]
    assert run("tools/ablate.py", *argv) == 2
    assert "DATASETS.TEST is empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_too_long_for_a_folder_is_refused(tiny, tmp_path, run, capsys):
    variant = " ".join(["MODEL.CLQ.BOX.LOSS_WEIGHT 2.0"] * 10)
    assert run("tools/ablate.py", "--config-file", tiny, "--output", tmp_path / "out", "--variants", variant) == 2
    assert "is too long for a folder; give it a shorter NAME=" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--variants", "--rows"])  # --rows is the older spelling
def test_two_variants_must_not_use_one_folder(option, tiny, tmp_path, run, capsys):
    variants = ["a b=MODEL.CLQ.TOPK 5", "a-b=MODEL.CLQ.TOPK 6"]
    assert run("tools/ablate.py", "--config-file", tiny, "--output", tmp_path / "out", option, *variants) == 2
    assert "would use the folder" in capsys.readouterr().err


@pytest.fixture
def trainings_in_this_process(run, monkeypatch):
    """Starting a process for each training would take several times as long as the training."""

    def run_here(argv, env, stdout, stderr):
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            return subprocess.CompletedProcess(argv, run("train_net.py", *argv[argv.index("train") + 1 :]))

    monkeypatch.setattr(runs.subprocess, "run", run_here)


def test_the_tool_trains_what_is_incomplete_and_compares_what_is_complete(
    tiny, tmp_path, run, capsys, trainings_in_this_process
):
    """The first call has a variant that fails; the third call has nothing left to train."""
    variants = [f"ATSS={ATSS}", f"CLQ={CLQ}", "Faster R-CNN=configs/comparison/faster_rcnn_R_50_FPN_1x.yaml"]
    argv = ["--config-file", tiny, "--output", tmp_path, "--seeds", 4, "--jobs", 1, "--speed-images", 1, "--variants"]
    opts = ["--opts", "SOLVER.MAX_ITER", 2, "MODEL.CLQ.SCORE_THRESH", 0.001]
    assert run("tools/ablate.py", *argv, variants[0], "broken=MODEL.CLQ.CLS.LOSS none", *opts) == 1
    out = capsys.readouterr().out
    assert "broken/seed_4: failed, see" in out and "1 of 2 trainings failed" in out
    table = (tmp_path / "table.md").read_text()  # has the complete variants only
    assert "| ATSS |" in table and "broken" not in table
    (stdout,) = tmp_path.glob("broken/seed_4/stdout.txt")
    assert "MODEL.CLQ.CLS.LOSS none: must be one of focal, qfl" in stdout.read_text()
    stdout.parent.rename(tmp_path / "elsewhere")

    assert run("tools/ablate.py", *argv, *variants, *opts) == 0
    out = capsys.readouterr().out
    assert "CLQ, compared with ATSS: BOX.CODING distribution (delta); BOX.WEIGHT_BY score (centerness)" in out
    assert "Faster R-CNN, compared with ATSS: META_ARCHITECTURE GeneralizedRCNN (CLQ)" in out
    assert set(re.findall(r"(\w+)/seed_4: started", out)) == {"CLQ", "Faster_R_CNN"}  # ATSS is complete
    table = (tmp_path / "table.md").read_text()
    for name in ("ATSS", "CLQ", "Faster R-CNN"):
        assert re.search(rf"^\| {name} \|(.*\|){{12}}$", table, re.M)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["CLQ"]["images/s"] > 0
    flops = [results[name]["GFLOPs (multiply-adds, 96x96)"] * 1e9 for name in ("ATSS", "CLQ")]
    # On 12x12 + 6x6 + 3x3 locations the alignment, its offsets in four groups, and 17 bins a side for one delta.
    assert flops[1] - flops[0] == pytest.approx(189 * (32 * 32 * 9 + 4 * 4 * 18 + 32 * 9 * 4 * 16))
    assert (tmp_path / "losses.png").stat().st_size > 10000
    assert (tmp_path / "forest.png").stat().st_size > 1000
    difference, aps = results["CLQ"]["AP minus ATSS"], [results[v]["seeds"]["4"]["AP"] for v in ("ATSS", "CLQ")]
    assert difference["value"] == pytest.approx(aps[1] - aps[0])
    assert difference["low"] <= difference["value"] <= difference["high"] and difference["seeds"] == 1
    assert re.search(r"^CLQ - ATSS: ±\d+\.\d\d AP with 1 seed\(s\), of the images alone", out, re.M)
    assert "AP minus ATSS" not in results["ATSS"]

    assert run("tools/ablate.py", *argv, *variants, "--reference", "CLQ", *opts) == 0
    assert "started" not in capsys.readouterr().out
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["ATSS"]["AP minus CLQ"]["value"] == pytest.approx(-difference["value"])


def test_a_reference_that_is_not_a_variant_is_refused(tiny, tmp_path, run, capsys):
    argv = ["--config-file", tiny, "--output", tmp_path / "out", "--reference", "GFL", "--variants", f"CLQ={CLQ}"]
    assert run("tools/ablate.py", *argv) == 2
    assert "--reference GFL: not one of CLQ." in capsys.readouterr().err
