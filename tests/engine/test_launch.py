"""How many processes a script starts; that too many are refused is in test_train_net.py."""

import sys

import clq  # noqa: F401  (first: it lets Detectron2 import)
import pytest
import torch
from clq.engine.launch import launch_cli
from detectron2.engine import default_argument_parser
from torch.multiprocessing import ProcessExitedException


def test_one_process_runs_the_script_and_gives_its_exit_status():
    args = default_argument_parser().parse_args(["--num-gpus", "0"])
    with pytest.raises(SystemExit) as exited:
        launch_cli(lambda given: 3 if given is args else 0, args)
    assert exited.value.code == 3


def test_a_process_that_exits_ends_the_script_with_its_status(monkeypatch):
    """Several processes need as many GPUs, so what Detectron2 would start is replaced."""

    def fail(*args):
        raise ProcessExitedException("process 1 exited", error_index=1, error_pid=1, exit_code=2)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(sys.modules["clq.engine.launch"], "launch", fail)
    with pytest.raises(SystemExit) as exited:
        launch_cli(print, default_argument_parser().parse_args(["--num-gpus", "2"]))
    assert exited.value.code == 2
