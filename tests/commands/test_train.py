"""``clq train`` and ``clq eval``; tests/test_train_net.py has whole trainings, through the same code."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from clq.engine import dry_run
from clq.engine.step import TrainingStep
from clq.engine.trainer import Trainer

SHORT = ["SOLVER.MAX_ITER", "1", "DATASETS.TEST", "[]"]


def test_train_writes_what_train_net_writes(tiny, run, run_clq, tmp_path):
    assert run_clq("train", "--config-file", tiny, "OUTPUT_DIR", tmp_path / "clq", *SHORT) == 0
    assert run("train_net.py", "--config-file", tiny, "OUTPUT_DIR", tmp_path / "train_net", *SHORT) == 0
    ours, theirs = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"] for name in ("clq", "train_net")
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_eval_finds_what_the_training_found(tiny, trained, run_clq, tmp_path):
    weights = trained / "model_final.pth"
    assert run_clq("eval", "--config-file", tiny, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path) == 0
    results = "inference/shapes_val/coco_instances_results.json"
    assert (tmp_path / results).read_text() == (trained / results).read_text()
    assert not list(tmp_path.glob("*.pth"))


def test_a_config_of_the_project_is_found_by_its_name(tiny, run_clq, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    declared = yaml.safe_load(Path(tiny).read_text())["DATASETS"]["COCO_JSON"]
    opts = ["DATASETS.COCO_JSON", declared, "DATASETS.TRAIN", "['shapes_train']", "SOLVER.IMS_PER_BATCH", 2]
    opts += ["MODEL.WEIGHTS", "", "DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TRAIN", (64,), *SHORT]
    assert run_clq("train", "--config-file", "CLQ/clq_lite_320", *opts) == 0
    assert (tmp_path / "output/model_final.pth").is_file()


def dry(lines, name):
    """The numbers in a line of the report, in order."""
    (line,) = (line for line in lines if line.startswith(f"{name}  "))
    return line, [float(text.replace(",", "")) for text in re.findall(r"\d[\d,]*\.?\d*(?:e-\d+)?", line)]


def test_a_dry_run_reports_what_the_training_takes_and_leaves_its_folder(tiny, run_clq, tmp_path, capsys, monkeypatch):
    output, steps, tested = tmp_path / "output", [], []
    monkeypatch.setattr(dry_run, "_TEST_IMAGES", 3)
    step, test = TrainingStep.run_step, Trainer.test.__func__
    monkeypatch.setattr(TrainingStep, "run_step", lambda self: steps.append(1) or step(self))
    monkeypatch.setattr(Trainer, "test", classmethod(lambda cls, *args: tested.append(1) or test(cls, *args)))
    opts = ["OUTPUT_DIR", output, "TEST.EVAL_PERIOD", 7, "SOLVER.EMA.ENABLED", True]
    assert run_clq("train", "--config-file", tiny, "--dry-run", *opts) == 0
    assert not output.exists()
    assert len(steps) == 2 and len(tested) == 2  # the weights and their average
    lines = capsys.readouterr().out.splitlines()
    seconds, iterations, *_ = dry(lines, "training")[1]
    assert iterations == 60 and 0 < seconds < 60
    line, _ = dry(lines, "evaluation")
    assert "9 time(s)" in line  # after 7, 14, ..., 56 and 60 iterations
    assert 0.1 < dry(lines, "memory")[1][0] < 64
    line, (size, *_) = dry(lines, "checkpoint")
    assert size > 10 and line.endswith("written and read back")  # ResNet-18: 11 million weights
    assert any(line.startswith("in total") for line in lines)


def test_a_dry_run_through_train_net_without_a_test_set(tiny, run, tmp_path, capsys):
    argv = ["--config-file", tiny, "--dry-run", "OUTPUT_DIR", tmp_path / "output", "DATASETS.TEST", "[]"]
    assert run("train_net.py", *argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not any(line.startswith("evaluation ") for line in lines)
    assert not (tmp_path / "output").exists()


MISTAKES = {
    "resume": (["--dry-run", "--resume"], "--dry-run: tries a new training; leave --resume and --eval-only out."),
    "eval": (["--dry-run", "--eval-only"], "--dry-run: tries a new training"),
    "key": (["--dry-run", "SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH 0"),
    "data": (["--dry-run", "DATASETS.TRAIN", "['gone']"], "there is no data set gone"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_a_dry_run_are_one_line(mistake, tiny, run_clq, capsys, tmp_path):
    words, message = MISTAKES[mistake]
    assert run_clq("train", "--config-file", tiny, *words, *([] if len(words) > 2 else ["OUTPUT_DIR", tmp_path])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("clq train: ") and message in line


def test_a_dry_run_refuses_the_folder_that_the_training_would_refuse(tiny, trained, run_clq, capsys):
    before = sorted(trained.rglob("*"))
    assert run_clq("train", "--config-file", tiny, "--dry-run", "OUTPUT_DIR", trained) == 2
    assert "holds a training" in capsys.readouterr().err
    assert sorted(trained.rglob("*")) == before


def test_too_little_memory_on_a_gpu_is_one_line(tiny, run_clq, tmp_path, capsys, monkeypatch):
    def fail(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(TrainingStep, "run_step", fail)
    assert run_clq("train", "--config-file", tiny, "--dry-run", "OUTPUT_DIR", tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "SOLVER.IMS_PER_BATCH 4: the memory of the GPU is too small; lower it" in line


def test_a_checkpoint_that_is_read_otherwise_than_written_ends_the_dry_run(
    tiny, run_clq, tmp_path, capsys, monkeypatch
):
    read = dry_run.checkpoint_to_resume

    def spoil(folder):
        path = read(folder)
        content = torch.load(path, weights_only=True)
        content["model"]["head.cls_logits.bias"] += 1
        torch.save(content, path)
        return path

    monkeypatch.setattr(dry_run, "checkpoint_to_resume", spoil)
    opts = ["OUTPUT_DIR", tmp_path, "DATASETS.TEST", "[]"]
    assert run_clq("train", "--config-file", tiny, "--dry-run", *opts) == 2
    assert "head.cls_logits.bias is not read as it was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "sizes, left",
    [([0.1, 0.2, 0.4], 2.1), ([0.5], 4.5)],  # 10 images: (0.2 + 0.4) / 2 x 7; 0.5 x 9
)
def test_the_time_of_an_evaluation_is_that_of_its_first_images(sizes, left, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(dry_run, "_TEST_IMAGES", len(sizes))
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: clock[0])
    loader = dry_run._FirstImages([[{}]] * 10)
    for seconds, _ in zip(sizes, loader, strict=True):
        clock[0] += seconds
    assert loader.left == pytest.approx(left)
