"""Starting a script in as many processes as it asks for, or as one of those that torchrun has started.

``--num-gpus`` and ``--num-processes`` start torch's own launcher, which torchrun is the command line of. A rank finds
the same environment either way, and from then on does the same.
"""

import argparse
import contextlib
import logging
import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import NoReturn
from urllib.parse import urlsplit

import torch
from detectron2.engine import default_argument_parser
from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher.api import LaunchConfig

import clq
from clq.engine import heartbeat, torch_launcher
from clq.engine.process_group import join_group, leave_group, place_of_torchrun, started_by_torchrun
from clq.engine.signals import InterruptedAtOnce, deferred, stop_signals
from clq.errors import UserError
from clq.utils.cli import count, positive, run_cli

logger = logging.getLogger(__name__)

_HEARTBEAT_TIMEOUT = 30  # seconds
_SECONDS_TO_END = 10  # for a rank that has failed
_CHOOSE_PROCESSES = "num_gpus", "num_processes", "num_machines", "machine_rank", "dist_url"


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's :func:`default_argument_parser` with ``--num-processes`` and ``--heartbeat-timeout``.

    The options that choose processes are None where they are not given.
    """
    parser = default_argument_parser()
    parser.add_argument("--num-processes", type=positive, help="number of processes on CPUs *per machine*")
    parser.add_argument(
        "--heartbeat-timeout",
        type=count,
        default=_HEARTBEAT_TIMEOUT,
        metavar="SECONDS",
        help="end a job of several processes when one of them has been silent, stopped or idle for so long; 0: never",
    )
    parser.set_defaults(**dict.fromkeys(_CHOOSE_PROCESSES))
    return parser


def launch_cli(main: Callable, args: argparse.Namespace) -> NoReturn:
    """:func:`~clq.utils.cli.run_cli` in as many processes as the arguments or torchrun ask for.

    Args:
        main: called as ``main(args)`` in each process.
        args: of :func:`argument_parser`.
    """
    run_cli(launch, main, args)


def launch(main: Callable, args: argparse.Namespace) -> int | None:
    """:func:`launch_cli` without the exit: returns the exit status, and raises what :func:`run_cli` reports."""
    if started_by_torchrun():
        return _run_rank(main, args)
    machines = 1 if args.num_machines is None else args.num_machines
    processes = _processes_per_machine(args, machines)
    if machines * processes == 1:
        return main(args)
    rendezvous: dict = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
    if machines > 1:
        rank = {"rank": _machine_rank(args, machines)}
        rendezvous = {"rdzv_backend": "static", "rdzv_endpoint": _endpoint(args, machines), "rdzv_configs": rank}
    _device_type(args, processes)  # its mistakes are reported once, before processes start
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=machines,
            max_nodes=machines,
            nproc_per_node=processes,
            run_id="clq",
            max_restarts=0,
            start_method="forkserver",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            **torch_launcher.settings(),
            **rendezvous,
        )
        return torch_launcher.run(config, _start_rank, main, args)


def _processes_per_machine(args: argparse.Namespace, machines: int) -> int:
    if machines < 1:
        raise UserError(f"--num-machines {machines}: must be at least 1.")
    if args.num_processes is not None:
        if args.num_gpus is not None:
            raise UserError("--num-processes is for CPUs and does not go with --num-gpus; leave one of them out.")
        return args.num_processes
    gpus = 1 if args.num_gpus is None else args.num_gpus
    if machines > 1 and gpus < 1:
        raise UserError(f"--num-machines {machines}: takes --num-gpus or --num-processes of at least 1.")
    found = torch.cuda.device_count()
    if gpus > found and gpus * machines > 1:  # a single process may do without
        raise UserError(
            f"--num-gpus {gpus} --num-machines {machines}: this machine has {found} GPU(s); ask for fewer, or for "
            "--num-processes on CPUs."
        )
    return max(gpus, 1)


def _machine_rank(args: argparse.Namespace, machines: int) -> int:
    rank = args.machine_rank
    if rank is None or not 0 <= rank < machines:
        raise UserError(f"--machine-rank {rank}: must be 0 on the first of the {machines} machines, 1 on the next, ...")
    return rank


def _endpoint(args: argparse.Namespace, machines: int) -> str:
    """Host and port of ``--dist-url``."""
    with contextlib.suppress(ValueError):
        url = urlsplit(args.dist_url or "")
        if url.scheme == "tcp" and url.hostname and url.port:
            return f"{url.hostname}:{url.port}"
    raise UserError(
        f"--num-machines {machines} --dist-url {args.dist_url}: takes --dist-url tcp://HOST:PORT, a free port of the "
        "first machine."
    )


def _device_type(args: argparse.Namespace, processes: int) -> str:
    """The device of all ranks, ``cuda`` or ``cpu``: the config's.

    Args:
        args: of the script.
        processes: number of processes on this machine.

    Raises:
        UserError: there are not as many GPUs, or the config asks for another device than the options.
    """
    device = clq.setup_cfg(args.config_file, args.opts).MODEL.DEVICE
    kind, _, index = device.partition(":")
    if index:
        raise UserError(f"MODEL.DEVICE {device}: several processes take a GPU each; write {kind}.")
    if kind == "cuda" and args.num_processes is not None:
        raise UserError(
            f"--num-processes {args.num_processes}: is for CPUs; set MODEL.DEVICE cpu, or ask for --num-gpus."
        )
    if kind == "cpu" and args.num_gpus is not None and args.num_gpus > 1:
        raise UserError(f"--num-gpus {args.num_gpus}: MODEL.DEVICE is cpu; ask for --num-processes.")
    if kind == "cuda" and processes > torch.cuda.device_count():
        raise UserError(
            f"{processes} processes on this machine, which has {torch.cuda.device_count()} GPU(s): start fewer "
            "(--nproc-per-node of torchrun), or set MODEL.DEVICE cpu."
        )
    return kind


def _start_rank(main: Callable, args: argparse.Namespace) -> None:
    """The first function of a process that the launcher has started, in which torch has set torchrun's environment."""
    for name in _CHOOSE_PROCESSES:
        setattr(args, name, None)
    multiprocessing.set_start_method(None, force=True)  # data loaders fork their workers as they do elsewhere
    run_cli(_run_rank, main, args)


@stop_signals(second_ends_process=True)
def _run_rank(main: Callable, args: argparse.Namespace) -> int | None:
    """Runs ``main`` as a rank; returns the exit status. Of all ranks that fail, the first prints why, in one line."""
    failure: Exception | InterruptedAtOnce
    try:
        try:
            torch_launcher.receive_signals()
            return _join_and_run(main, args)
        except Exception as e:
            if isinstance(e, UserError) and not distributed.is_initialized():  # nothing waits for other ranks yet
                raise
            failure = e
        except InterruptedAtOnce:
            raise
        except BaseException:  # SystemExit, KeyboardInterrupt
            if (beat := heartbeat.current()) is not None:
                beat.leave()
            raise
    except InterruptedAtOnce as e:  # perhaps raised while one of the others was caught
        failure = e
    with deferred():
        return _fail(failure)


def _join_and_run(main: Callable, args: argparse.Namespace) -> int | None:
    try:
        place = place_of_torchrun()
        for name in _CHOOSE_PROCESSES:
            if getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')}: torchrun chooses the processes; leave it out.")
        device = _device_type(args, int(os.environ["LOCAL_WORLD_SIZE"]))
    except UserError:
        if int(os.environ["LOCAL_RANK"]) > 0:  # the others of this machine print nothing
            return 2
        raise
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0:
        args.resume = True  # torchrun has started the job again
    join_group(place, device, args.heartbeat_timeout)
    status = main(args)
    leave_group()
    return status


def _fail(failure: Exception | InterruptedAtOnce) -> int:
    """Reports the failure of this rank unless it follows from that of another one; returns the exit status."""
    rank = int(os.environ["RANK"])
    if isinstance(failure, UserError):
        message, status = str(failure), 2
    elif isinstance(failure, InterruptedAtOnce):
        message, status = failure.message, failure.exit_status
    else:
        message, status = f"rank {rank}: {type(failure).__name__}: {' '.join(str(failure).split())}", 1
    first = True
    if (beat := heartbeat.current()) is not None:
        first = beat.fail(message, status)
    elif status <= 2 or rank == 0:  # a signal reaches all ranks
        print(f"{sys.argv[0]}: {message}", file=sys.stderr)
    if first and status == 1:
        logger.error("Exception in rank %d:", rank, exc_info=failure)
    _limit_end(status)
    return status


def _limit_end(status: int) -> None:
    """Ends this process soon, even if something waits for ranks that are gone when the interpreter ends."""
    timer = threading.Timer(_SECONDS_TO_END, os._exit, (status,))
    timer.daemon = True
    timer.start()
