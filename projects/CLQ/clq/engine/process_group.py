"""The process group of a training: its devices, Detectron2's groups of each machine, and what all ranks must share."""

import logging
import os
import uuid
from datetime import timedelta
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from clq.engine import heartbeat
from clq.engine.heartbeat.board import Place
from clq.errors import UserError

_TORCHRUN = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"


def started_by_torchrun() -> bool:
    """Whether the environment is that of a rank, as torchrun and this project's own launcher set it.

    Raises:
        UserError: only a part of it is set.
    """
    missing = [name for name in _TORCHRUN if name not in os.environ]
    if {"RANK", "WORLD_SIZE"} & set(missing):
        return False
    if missing:
        raise UserError(
            f"RANK and WORLD_SIZE are set, as by torchrun, but not {', '.join(missing)}; start the script with "
            "torchrun, or unset them."
        )
    return True


def place_of_torchrun() -> Place:
    """The place of this process in the job.

    Raises:
        UserError: the machines have different numbers of processes.
    """
    rank, world_size, local_rank, local_size = (int(os.environ[name]) for name in _TORCHRUN[:4])
    if world_size % local_size:
        raise UserError(
            f"{world_size} processes, {local_size} of them on this machine: start equally many on each machine "
            "(--nproc-per-node of torchrun)."
        )
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return Place(rank, world_size, local_rank, rank // local_size, address, port)


def join_group(place: Place, device: str, heartbeat_timeout: float, timeout: timedelta = DEFAULT_TIMEOUT) -> None:
    """Makes this process, started by torchrun or alike, a rank of Detectron2's.

    Args:
        place: place of this process in the job.
        device: type of the device that the ranks compute on: ``cuda`` (NCCL, each rank its own GPU) or ``cpu`` (gloo).
        heartbeat_timeout: seconds for which a rank may be silent, stopped or idle; 0 switches heartbeats off.
        timeout: of a collective operation.
    """
    local_size = int(os.environ["LOCAL_WORLD_SIZE"])
    beat = heartbeat.start(place, heartbeat_timeout) if place.world_size > 1 and heartbeat_timeout > 0 else None
    if device == "cuda":
        torch.cuda.set_device(place.local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(num_cores() // local_size, 1))
    backend = "nccl" if device == "cuda" else "gloo"
    distributed.init_process_group(backend, init_method="env://", timeout=timeout)
    _create_local_groups(local_size, place.machine)
    key = comm.all_gather(uuid.uuid4().hex)[0]
    if beat is not None:
        beat.join(f"clq/{key}")


def leave_group() -> None:
    """Ends this rank when all others have come to their end as well."""
    comm.synchronize()
    if (beat := heartbeat.current()) is not None:
        beat.leave()
    distributed.destroy_process_group()


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _create_local_groups(local_size: int, machine: int) -> None:
    if hasattr(comm, "create_local_process_group"):  # Detectron2 main
        comm.create_local_process_group(local_size)
        return
    for i in range(comm.get_world_size() // local_size):
        group = distributed.new_group(list(range(i * local_size, (i + 1) * local_size)))
        if i == machine:
            comm._LOCAL_PROCESS_GROUP = group


def set_up_other_ranks(cfg: CfgNode, eval_only: bool) -> None:
    """What Detectron2's :func:`default_setup` does on ranks above 0, but for their log files and warnings.

    Args:
        cfg: of the training.
        eval_only: whether to evaluate only.
    """
    for name in ("clq", "detectron2", "fvcore"):
        logging.getLogger(name).setLevel(logging.ERROR)  # rank 0 logs the rest
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    if not eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def check_same_checkpoints(folder: str) -> None:
    """Checks that all ranks find the same checkpoints to resume from, as in a folder that the machines share.

    Raises:
        UserError: they do not; on all ranks.
    """
    path = Path(folder)
    found = comm.all_gather(sorted(entry.name for entry in path.glob("*.pth")) if path.is_dir() else [])
    for rank, names in enumerate(found):
        if names != found[0]:
            raise UserError(
                f"--resume: OUTPUT_DIR {folder} has {len(found[0])} checkpoint(s) where rank 0 runs and {len(names)} "
                f"where rank {rank} runs; name a folder that all machines share."
            )


def share_buffers(model: nn.Module) -> None:
    """Copies the buffers of rank 0, which a checkpoint keeps, to all ranks.

    Each rank has running statistics of batch normalization of its own images. With these, the ranks would evaluate
    different detectors.
    """
    if comm.get_world_size() == 1:
        return
    model = model.module if isinstance(model, DistributedDataParallel) else model
    for buffer in model.buffers():
        distributed.broadcast(buffer, 0)
