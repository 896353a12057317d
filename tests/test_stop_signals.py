"""Signals that reach trainings from outside."""

import dataclasses
import os
import re
import signal
import sys
import time

import pytest
import torch
from clq.commands.train import main
from clq.engine.step import TrainingStep
from clq.utils.cli import run_cli
from forked import SMALL, Forked
from torch.distributed.launcher.api import LaunchConfig

ENDLESS = ["SOLVER.MAX_ITER", 100000]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def train(tiny, monkeypatch):
    """``train(folder, *words)`` runs `clq train` and raises SystemExit."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(folder, *words):
        argv = ["--config-file", tiny, *words, *SMALL, "OUTPUT_DIR", folder / "output", "DATASETS.TEST", "[]"]
        run_cli(main, list(map(str, argv)))

    return run


def last_iteration(folder):
    """Iteration of the newest checkpoint, whose name says the same, or -1."""
    path = folder / "output/last_checkpoint"
    if not path.exists():
        return -1
    name = path.read_text()
    iteration = torch.load(path.parent / name, weights_only=True)["iteration"]
    assert name == f"model_{iteration:07d}.pth"
    return iteration


def stopped(signum, folder):
    """The line that a training prints."""
    i = last_iteration(folder)
    path = folder / f"output/model_{i:07d}.pth"
    return f"{signum.name}: stopped after iteration {i}; the same command with --resume continues from {path}."


def test_a_forked_process_can_train_after_an_export(tmp_path):
    """Whatever test came before, see conftest.py."""

    def step():
        torch.ones(1, requires_grad=True).sum().backward()
        sys.exit(0)

    torch.export.export(torch.nn.Linear(1, 1), (torch.ones(1, 1),))
    with pytest.raises(SystemExit):
        step()
    with Forked(step, tmp_path) as process:
        assert process.status() == 0, process.errors.read_text()


def test_sigterm_to_all_processes_ends_after_a_step_with_a_checkpoint(train, tmp_path):
    with Forked(lambda: train(tmp_path, *ENDLESS, "DATALOADER.NUM_WORKERS", 2), tmp_path) as training:
        # Both in one wait: it shows what the training printed if its workers have ended.
        training.wait_for(lambda: "iter: " in training.output.read_text() and len(training.processes()) == 3)
        os.killpg(training.pid, signal.SIGTERM)
        assert training.status() == 143, training.errors.read_text()
    assert training.lines() == [stopped(signal.SIGTERM, tmp_path)]
    assert "Traceback" not in training.errors.read_text()


def test_a_second_signal_ends_at_once_without_a_checkpoint(train, tmp_path, monkeypatch):
    """The first one waits for a step that does not end."""
    monkeypatch.setattr(TrainingStep, "_backward", lambda step, loss: time.sleep(600))
    words = *ENDLESS, "DATALOADER.NUM_WORKERS", 2
    with Forked(lambda: train(tmp_path, *words), tmp_path) as training:
        training.wait_for(lambda: len(training.processes()) == 3)
        time.sleep(1)
        os.killpg(training.pid, signal.SIGINT)
        time.sleep(1.2)
        assert len(training.processes()) == 3
        os.killpg(training.pid, signal.SIGINT)
        assert training.status() == 130
    assert training.lines() == ["SIGINT again: ended at once, without a checkpoint."]
    assert not list(tmp_path.glob("output/*.pth"))


def test_signals_to_all_processes_of_two_ranks(train, tmp_path):
    """Each signal leaves one checkpoint, one line and its status. The launcher and its fork server serve all jobs."""
    signums = [signal.SIGTERM, signal.SIGINT]
    if "signals_to_handle" in {field.name for field in dataclasses.fields(LaunchConfig)}:  # not in torch 2.6
        signums.append(signal.SIGUSR1)

    def train_often():
        for i in range(len(signums) + 1):
            iterations = 100000 if i < len(signums) else last_iteration(tmp_path) + 3
            words = "--num-processes", 2, "--resume", "DATALOADER.NUM_WORKERS", 1, "SOLVER.CHECKPOINT_PERIOD", 2
            with pytest.raises(SystemExit) as exited:
                train(tmp_path, *words, "SOLVER.MAX_ITER", iterations)
            (tmp_path / f"status{i}").write_text(str(exited.value.code))

    expected, begin = [], -1
    with Forked(train_often, tmp_path) as job:
        for i, signum in enumerate(signums):
            job.wait_for(lambda begin=begin: last_iteration(tmp_path) > begin)
            os.killpg(job.pid, signum)
            job.wait_for((tmp_path / f"status{i}").exists)
            assert int((tmp_path / f"status{i}").read_text()) == 128 + signum
            begin = last_iteration(tmp_path)
            expected.append(stopped(signum, tmp_path))
            assert job.lines() == expected
        job.status()
    assert (tmp_path / f"status{len(signums)}").read_text() == "0"
    assert job.lines() == expected
    check_written_by_one(tmp_path / "output", begin)


def check_written_by_one(output, begin):
    """The files of the training of two ranks, resumed after iteration ``begin`` for two more."""
    names = {re.sub(r"_\d{7}", "", path.name) for path in output.iterdir() if not path.name.startswith("events")}
    final = {"finished", "model_final.pth", "model_final.safetensors", "metrics.csv", "curves.png"}
    assert names == {"config.yaml", "last_checkpoint", "log.txt", "metrics.json", "model.pth"} | final
    log = (output / "log.txt").read_text()
    assert log.count("Rank of current process: 0. World size: 2") == 4  # one of each job, and none of rank 1
    assert f"Starting training from iteration {begin + 1}" in log
