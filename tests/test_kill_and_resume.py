"""Trainings that are interrupted and resumed end as they would have ended."""

import re
import shutil
import time

import pytest
import torch
from clq.checkpoint.comparison import compare, differences
from clq.utils.files import TEMPORARY
from forked import SMALL

OPTS = [*SMALL, "DATASETS.TEST", "[]", "SOLVER.EMA.ENABLED", True, "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2]
OPTS += ["SEED", -1, "DATALOADER.NUM_WORKERS", 1, "INPUT.AUG.SCALE", "[0.5, 2.0]"]
OPTS += ["TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2, "TEST.EVAL_PERIOD", 2]


@pytest.fixture(scope="module")
def uninterrupted(tiny, run, tmp_path_factory):
    """Output folder of a training with a seed that it drew; only read."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run("train_net.py", "--config-file", tiny, *OPTS, "OUTPUT_DIR", folder) == 0
    return folder


def interrupted(uninterrupted, folder, last):
    """Makes a folder that holds what a training left that was killed after a checkpoint, while it wrote another one."""
    (folder / f".model_final.pth.7{TEMPORARY}").write_bytes(b"half")
    for path in uninterrupted.glob("model_0*.pth"):
        if path.name <= last:
            shutil.copy(path, folder)
    (folder / "last_checkpoint").write_text(last)


def check_equal(folder, uninterrupted):
    assert compare(folder, uninterrupted) == []
    assert {path.name for path in folder.glob("*model_final*")} == {
        *("model_final.pth", "model_final_ema.pth", "model_final.safetensors")
    }


def test_a_resumed_training_ends_bit_by_bit_as_an_uninterrupted_one(uninterrupted, tiny, run, tmp_path):
    interrupted(uninterrupted, tmp_path, "model_0000001.pth")
    torch.rand(5)  # whatever was drawn before
    assert run("train_net.py", "--config-file", tiny, "--resume", *OPTS, "OUTPUT_DIR", tmp_path) == 0
    check_equal(tmp_path, uninterrupted)


def test_a_training_killed_after_its_last_step_is_completed(uninterrupted, tiny, run, tmp_path):
    interrupted(uninterrupted, tmp_path, "model_0000003.pth")
    (tmp_path / "model_final.pth").write_bytes((uninterrupted / "model_final.pth").read_bytes()[:1000])
    assert run("train_net.py", "--config-file", tiny, "--resume", *OPTS, "OUTPUT_DIR", tmp_path) == 0
    check_equal(tmp_path, uninterrupted)


def test_resuming_a_finished_training_touches_nothing(uninterrupted, tiny, run, capsys):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    capsys.readouterr()
    assert run("train_net.py", "--config-file", tiny, "--resume", *OPTS, "OUTPUT_DIR", uninterrupted) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{uninterrupted}: its training is finished, after 4 iterations. To go on, raise")
    assert len(said.splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before


def test_trainings_that_are_killed_end_as_they_would_have(script, capfd):
    assert script("tools/kill_and_resume.py").main(["--rounds", "1", "--settings", "1"]) == 0
    assert "1 of 1 rounds equal" in capfd.readouterr().out


def test_a_stalled_training_is_ended_and_its_stack_written(script, tmp_path, monkeypatch):
    tool = script("tools/kill_and_resume.py")

    def stall(main, argv):
        time.sleep(600)

    monkeypatch.setattr(tool, "run_cli", stall)
    status = tool.train(tmp_path / "output", ["configs/CLQ/clq_R_50_FPN_1x.yaml"], limit=2)
    assert tool.failure(tmp_path / "output", status).startswith("stalled, see the stacks")
    assert re.search(
        r'File ".*test_kill_and_resume.py", line \d+ in stall', (tmp_path / "output/stdout.txt").read_text()
    )


def test_the_comparison_finds_one_bit():
    expected = {"a": torch.tensor([1.0, float("nan")]), "b": [torch.tensor(3), 0.1]}
    same = {"a": expected["a"].clone(), "b": [torch.tensor(3), 0.1]}
    assert list(differences(same, expected)) == []
    same["a"].view(torch.int32)[0] ^= 1
    same["b"][1] += 1e-16
    assert list(differences(same, expected)) == ["/a", "/b/1"]
