"""The trainings of a study: processes, folders, GPUs and losses."""

import json
import os

import pytest
import torch
from clq.errors import UserError
from clq.experiments import runs
from clq.experiments.runs import Run, loss_curves, train_all, visible_gpus

# In place of `clq train`: records how it was called and exits with the status that SEED gives.
SCRIPT = """
import json, os, sys
json.dump([sys.argv[1:], os.environ["OMP_NUM_THREADS"], os.environ.get("CUDA_VISIBLE_DEVICES")], sys.stdout)
sys.exit(int(sys.argv[sys.argv.index("SEED") + 1]))
"""


def test_each_run_trains_in_a_separate_process(tiny, tmp_path, monkeypatch, capsys):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(runs, "TRAIN", (str(script),))
    monkeypatch.setattr(runs, "visible_gpus", lambda: ["GPU-a"])
    good, failing = (Run(tiny, ("SEED", str(seed)), tmp_path / f"seed_{seed}") for seed in (0, 1))
    assert train_all([good, failing], jobs=2) == [failing]
    assert (good.done, failing.done) == (True, False)
    argv, threads, gpu = json.loads((good.folder / "stdout.txt").read_text())
    assert argv == ["--config-file", tiny, "--resume", "SEED", "0", "OUTPUT_DIR", str(good.folder)]
    assert (int(threads), gpu) == (max(1, os.cpu_count() // 2), "GPU-a")
    assert f"{failing.folder}: failed, see {failing.folder}/stdout.txt" in capsys.readouterr().out
    assert train_all([good], jobs=1) == [] and not capsys.readouterr().out  # complete, so it is not started again


def test_a_folder_belongs_to_one_run(tiny, tmp_path):
    Run(tiny, ("SEED", "1"), tmp_path).prepare()
    Run(tiny, ("SEED", "1"), tmp_path).prepare()
    with pytest.raises(UserError, match=f"{tmp_path}: holds a run with other settings"):
        Run(tiny, ("SEED", "2"), tmp_path).prepare()
    heir = tmp_path / "heir.yaml"  # a file that stays the same while its base changes
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


def test_the_losses_of_a_training_are_read(trained):
    curves = loss_curves(trained)
    assert set(curves) == {"loss_cls", "loss_box", "loss_dfl", "loss_quality", "total_loss"}
    iterations, values = zip(*curves["loss_box"], strict=True)
    assert list(iterations) == sorted(iterations) and values[-1] < values[0]


def test_the_losses_of_a_continued_training_are_read(tmp_path):
    """The training went through iteration 1 twice and was interrupted in the middle of a line."""
    lines = ['{"iteration": 0, "loss": 4.0}', '{"iteration": 1, "loss": 3.0, "lr": 1.0}', '{"iteration": 2, "lo']
    lines += ['{"iteration": 1, "loss": 2.0}', '{"iteration": 2, "loss": 1.0}']
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    assert loss_curves(tmp_path) == {"loss": [(0, 4.0), (1, 2.0), (2, 1.0)]}
