"""A training in epochs with evaluations in between, which ends early and is resumed."""

import json
import shutil

import pytest
import torch
import yaml
from clq.engine.metrics_csv import read_metrics

# Steps that change nothing but the count: every evaluation gives the same AP.
STILL = [
    "SOLVER.BASE_LR",
    "1e-30",
    "SOLVER.WEIGHT_DECAY",
    0.0,
    "SOLVER.MOMENTUM",
    0.0,
    "MODEL.RESNETS.NORM",
    "FrozenBN",
]
EPOCHS = ["SOLVER.EPOCHS", 4, "SOLVER.IMS_PER_BATCH", 16, "SOLVER.STEPS", "(0.5,)", "SOLVER.PATIENCE", 1]


@pytest.fixture(scope="module")
def ended(tiny, trained, run, tmp_path_factory):
    """Output folder of a training that ends after two of its four epochs of one iteration."""
    folder = tmp_path_factory.mktemp("ended")
    assert train(run, tiny, trained, folder, "TEST.REPORT", True) == 0
    return folder


def train(run, tiny, trained, folder, *opts):
    start = ["MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", folder]
    return run("train_net.py", "--config-file", tiny, "--resume", *STILL, *EPOCHS, *start, *opts)


def checkpoint(path):
    return torch.load(path, weights_only=True)


def test_a_training_ends_early_with_all_of_its_files(ended):
    log = (ended / "log.txt").read_text()
    assert log.count("The training ends early, after iteration 1: 1 evaluations were not better than the best") == 1
    assert checkpoint(ended / "model_final.pth")["iteration"] == 1
    assert checkpoint(ended / "model_best.pth")["iteration"] == 0
    assert log.count("Evaluation results for bbox") == 2  # none at the end: the last step is evaluated already
    assert {"model_final.safetensors", "finished", "last_checkpoint"} <= {path.name for path in ended.iterdir()}
    assert "Traceback" not in log


def test_an_early_end_leaves_the_report_on_its_last_evaluation(ended):
    (folder,) = (ended / "inference").iterdir()
    last = [json.loads(line) for line in (ended / "metrics.json").read_text().splitlines() if "bbox/AP" in line][-1]
    (numbers,) = json.loads((folder / "metrics.json").read_text()).values()
    assert numbers["coco"]["AP"] == pytest.approx(last["bbox/AP"], abs=1e-6)
    assert {"report.html", "thresholds.json"} <= {path.name for path in folder.iterdir()}
    assert (ended / "log.txt").read_text().count("report: ") == 1


def test_each_evaluation_is_in_the_metrics(ended):
    """Though the writers write after every 20 iterations only."""
    lines = [json.loads(line) for line in (ended / "metrics.json").read_text().splitlines()]
    found = {line["iteration"]: line for line in lines if "bbox/AP" in line}
    assert found.keys() == {0, 1}
    _, rows = read_metrics(ended / "metrics.csv")
    assert {i: float(row["bbox/AP-red"]) for i, row in rows.items() if "bbox/AP-red" in row} == {
        i: line["bbox/AP-red"] for i, line in found.items()
    }
    assert (ended / "curves.png").is_file()


def test_the_saved_config_has_epochs_and_what_follows_from_them(ended):
    saved = yaml.safe_load((ended / "config.yaml").read_text())
    assert (saved["SOLVER"]["EPOCHS"], saved["SOLVER"]["MAX_ITER"], saved["SOLVER"]["STEPS"]) == (4, 4, [0.5])
    assert (saved["TEST"]["EVAL_PERIOD"], saved["SOLVER"]["CHECKPOINT_PERIOD"]) == (1, 1)


def test_it_is_finished_and_goes_on_with_more_patience(ended, tiny, trained, run, capsys, tmp_path):
    ended = shutil.copytree(ended, tmp_path / "copy")
    capsys.readouterr()
    assert train(run, tiny, trained, ended) == 0
    assert capsys.readouterr().out.endswith(
        "set SOLVER.PATIENCE to 0 or above 1; to evaluate it again, use --eval-only.\n"
    )
    assert train(run, tiny, trained, ended, "SOLVER.PATIENCE", 0, "DATASETS.TEST", "()") == 0
    assert checkpoint(ended / "model_final.pth")["iteration"] == 3
    rates = [g["lr"] for g in checkpoint(ended / "model_final.pth")["trainer"]["_trainer"]["optimizer"]["param_groups"]]
    assert max(rates) < 1e-30  # a tenth of its rate from the middle on
