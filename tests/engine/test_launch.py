"""Which processes a command line asks for, and what it is refused. The processes run in test_process_group.py."""

import pytest
import torch
from clq.engine import launch, process_group
from clq.errors import UserError

TORCHRUN = {
    "RANK": "2",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "first",
    "MASTER_PORT": "29500",
}


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def arguments(*words, config="", device="cuda"):
    return launch.argument_parser().parse_args(["--config-file", config, *map(str, words), "MODEL.DEVICE", device])


def refused(*words, device="cuda"):
    def main(args):
        raise AssertionError("nothing may run")

    with pytest.raises(UserError) as e:
        launch.launch(main, arguments(*words, device=device))
    (line,) = str(e.value).splitlines()
    return line


def test_one_process_runs_here():
    for words in ((), ("--num-gpus", 1), ("--num-gpus", 0), ("--num-processes", 1)):
        assert launch.launch(lambda args: 7, arguments(*words)) == 7


def test_combinations_that_do_not_go_together():
    assert "--num-processes is for CPUs and does not go with --num-gpus" in refused(
        "--num-gpus", 2, "--num-processes", 2
    )
    assert "this machine has 2 GPU(s); ask for fewer" in refused("--num-gpus", 3)
    assert "set MODEL.DEVICE cpu, or ask for --num-gpus" in refused("--num-processes", 2)
    assert "--num-gpus 2: MODEL.DEVICE is cpu" in refused("--num-gpus", 2, device="cpu")
    assert "MODEL.DEVICE cuda:1: several processes take a GPU each" in refused("--num-gpus", 2, device="cuda:1")
    assert "--num-machines 0: must be at least 1" in refused("--num-machines", 0)


def test_several_machines_need_a_rank_and_a_place_to_meet():
    assert "--machine-rank None: must be 0 on the first of the 2" in refused("--num-machines", 2)
    assert "--machine-rank 2: must be" in refused("--num-machines", 2, "--machine-rank", 2)
    for url in ("auto", "tcp://first", "file:///tmp/x", "tcp://first:port"):
        words = "--num-machines", 2, "--machine-rank", 1, "--dist-url", url
        assert "takes --dist-url tcp://HOST:PORT" in refused(*words)


@pytest.fixture
def torchrun(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_place_of_a_rank(torchrun):
    place = process_group.place_of_torchrun()
    assert (place.rank, place.world_size, place.local_rank, place.machine) == (2, 4, 0, 1)
    assert (place.address, place.port) == ("first", 29500)
    torchrun.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="4 processes, 3 of them on this machine: start equally many"):
        process_group.place_of_torchrun()


def test_torchrun_chooses_the_processes(torchrun):
    assert "--num-gpus: torchrun chooses the processes; leave it out" in refused("--num-gpus", 2)
    assert "--dist-url: torchrun" in refused("--dist-url", "auto")
    torchrun.setattr(torch.cuda, "device_count", lambda: 1)
    assert "2 processes on this machine, which has 1 GPU(s): start fewer" in refused()
    # The other rank of this machine leaves the line to the first.
    torchrun.setenv("LOCAL_RANK", "1")
    assert launch.launch(lambda args: 0, arguments()) == 2


def test_an_incomplete_environment(torchrun):
    torchrun.delenv("LOCAL_RANK")
    assert "RANK and WORLD_SIZE are set, as by torchrun, but not LOCAL_RANK" in refused()
    torchrun.delenv("RANK")  # WORLD_SIZE alone is set in many environments
    assert launch.launch(lambda args: 7, arguments(device="cpu")) == 7
