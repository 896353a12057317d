"""Torch's launcher of several processes, which torchrun is the command line of, as this project starts it."""

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker

from torch.distributed import DistNetworkError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from clq.engine.signals import InterruptedAtOnce, stop_signals
from clq.errors import UserError, signal_name

_SECONDS_TO_STOP = 600  # for ranks that a signal has reached; torch itself would end them after 30 s
_SECONDS_OF_LEFT = 5  # for ranks that torch's launcher has left behind
# Modules that are imported once for all ranks. The first rank would import the last two later.
_PRELOADED = ["clq.engine.trainer", "torch.utils.cpp_extension", "torch.utils.tensorboard"]
_NAMES = "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1"
PASSED_ON = {getattr(signal, name) for name in _NAMES if hasattr(signal, name)}  # signals that reach the ranks


def settings() -> dict:
    """Settings of :class:`LaunchConfig` for signals, as far as the installed torch has them.

    SIGUSR1 is passed on to the ranks as well, and they have time to finish their step and write a checkpoint.
    """
    seconds = int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SECONDS_TO_STOP))  # as torch reads it
    wanted = {"signals_to_handle": ",".join(_NAMES), "shutdown_timeout": seconds}
    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    return {name: value for name, value in wanted.items() if name in known}


def run(config: LaunchConfig, rank: Callable, *args: object) -> int:
    """Runs the processes of this machine; returns the exit status.

    Args:
        config: of torch's launcher, with the start method ``forkserver``.
        rank: function that each process calls; it has to begin with :func:`receive_signals`.
        args: arguments of the function.
    """
    for name in logging.root.manager.loggerDict:  # the ranks report what happens in one line
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with stop_signals(), _handlers_restored():  # torch installs its own handlers when it has started the ranks
        try:
            start_fork_server()
            elastic_launch(config, rank)(*args)
            return 0
        except SignalException as e:  # passed on to the ranks, which have ended
            for signum in PASSED_ON:
                signal.signal(signum, signal.SIG_IGN)
            _end_ranks(e.sigval)
            return 128 + e.sigval
        except DistNetworkError as e:
            reason = str(e).splitlines()[0]
            message = f"{config.rdzv_endpoint}: the processes cannot meet there ({reason}); see --dist-url."
            raise UserError(message) from e
        except ChildFailedError as e:
            return _report(e)


def receive_signals() -> None:
    """Lets a rank receive the signals that its fork server does not."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)


def start_fork_server() -> None:
    """Starts the process that forks the ranks, and multiprocessing's other helper, such that no signal ends them.

    A terminal and SLURM send their signals to all processes of a job. Torch's launcher learns from the fork server
    whether a rank runs, and would end the ranks without it. The signals are blocked, which both processes inherit,
    because a signal that is ignored would be ignored by the ranks, too (:func:`~clq.engine.signals.stop_signals`).

    Raises:
        InterruptedAtOnce: a signal came while the fork server was importing.
    """
    multiprocessing.set_forkserver_preload(_PRELOADED)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # again: it has unblocked two of them
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    first = multiprocessing.get_context("forkserver").Process(target=int)  # does nothing, when the server has imported
    try:
        first.start()
        first.join()
    except InterruptedAtOnce:
        if (server := getattr(forkserver._forkserver, "_forkserver_pid", None)) is not None:
            os.kill(server, signal.SIGKILL)  # or it would end only after its imports
        raise


def _end_ranks(signum: int) -> None:
    """Ends ranks that torch's launcher has left: it was still starting them, or a second signal came."""
    left = multiprocessing.active_children()
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signum)  # type: ignore[arg-type]
    end = time.monotonic() + _SECONDS_OF_LEFT
    for process in left:
        process.join(max(end - time.monotonic(), 0))
    left = multiprocessing.active_children()
    for process in left:
        process.kill()
        process.join()
    if left:
        print(f"{sys.argv[0]}: {signal_name(signum)}: {len(left)} rank(s) were ended at once.", file=sys.stderr)


def _report(error: ChildFailedError) -> int:
    """Names the ranks that a signal has ended; returns the exit status."""
    for rank, failure in error.failures.items():
        if failure.exitcode < 0 and "status" not in failure.error_file_data:
            print(f"{sys.argv[0]}: rank {rank} was ended by {failure.signal_name()}.", file=sys.stderr)
    _, first = error.get_first_failure()
    return first.error_file_data.get("status", max(first.exitcode, 1))


@contextlib.contextmanager
def _handlers_restored() -> Iterator[None]:
    """Restores the handlers of signals, which torch's launcher replaces for good."""
    before = {signum: signal.getsignal(signum) for signum in signal.valid_signals()}
    try:
        yield
    finally:
        for signum, handler in before.items():
            if handler is not None and signal.getsignal(signum) is not handler:
                signal.signal(signum, handler)
