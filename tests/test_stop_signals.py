"""Signals that reach a training from outside, in child processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def children(pid):
    """Process ids of the direct children, the workers of data loaders."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def interrupt(tiny, folder, *sent, opts=(), until="iter: "):
    """Starts a training in a process group of its own and sends signals to the whole group, as a terminal does.

    Returns:
        The exit status, what it printed to stderr, and the workers that were left a second later.
    """
    argv = ["--config-file", tiny, "OUTPUT_DIR", folder, "DATALOADER.NUM_WORKERS", 2, "SOLVER.MAX_ITER", 100000, *opts]
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "train_net.py", *argv]
    out = folder.parent / "out.txt"
    with out.open("w") as stdout:
        process = subprocess.Popen(
            [*map(str, command)], env=env, stdout=stdout, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    try:
        while until not in out.read_text():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        workers = children(process.pid)
        for signum in sent:
            os.killpg(process.pid, signum)
            time.sleep(1.2 if len(sent) > 1 else 0)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    time.sleep(1)
    assert workers or until != "iter: "
    return process.returncode, err, [pid for pid in workers if is_running(pid)]


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_sigterm_to_all_processes_ends_after_a_step_with_a_checkpoint(tiny, tmp_path):
    folder = tmp_path / "output"
    status, err, left = interrupt(tiny, folder, signal.SIGTERM)
    assert (status, left) == (143, [])
    name = (folder / "last_checkpoint").read_text()
    iteration = torch.load(folder / name, weights_only=True)["iteration"]
    assert name == f"model_{iteration:07d}.pth"
    assert f"SIGTERM: stopped after iteration {iteration}; the same command with --resume continues" in err
    assert "Traceback" not in err


def test_a_second_signal_ends_at_once_without_a_checkpoint(tiny, tmp_path):
    """The first one waits for a step that this many images make long."""
    folder = tmp_path / "output"
    opts = ["SOLVER.IMS_PER_BATCH", 256, "INPUT.MIN_SIZE_TRAIN", "[256]"]
    status, err, left = interrupt(tiny, folder, signal.SIGINT, signal.SIGINT, opts=opts, until="Starting training")
    assert (status, left) == (130, [])
    assert "SIGINT again: ended at once, without a checkpoint." in err
    assert not list(folder.glob("*.pth"))
