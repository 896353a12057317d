"""Signals that ask a process to end: SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (both of which SLURM can send).

During a training they are deferred: the step is finished, a checkpoint is written, and :class:`clq.errors.Interrupted`
ends the process. At any other time they raise it at once. A second signal does not wait for either. Workers of data
loaders, to which a terminal or SLURM sends the same signals, go on until their process ends them.
"""

import contextlib
import functools
import multiprocessing
import multiprocessing.util
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, NoReturn, TypeVar

from clq.engine import heartbeat
from clq.errors import STOP_SIGNALS, Interrupted, ended_at_once, signal_name

# torchrun, SLURM and a terminal may each pass on the same signal, so that a process receives it several times.
_SECONDS_OF_ONE_SIGNAL = 1.0
_SECONDS_TO_REACT = 5.0
_SECONDS_OF_ORPHANS = 0.5  # that a worker may outlive its process

_Loader = TypeVar("_Loader", bound=Iterable)


class InterruptedAtOnce(Interrupted):
    """A signal that was not deferred. Nothing has been saved because of it.

    Args:
        signum: number of the signal.
    """

    def __init__(self, signum: int):
        super().__init__(signum, ended_at_once(signum))


class _Handlers:
    """The handlers of one process; see :func:`stop_signals`."""

    def __init__(self, second_ends_process: bool):
        self.received = 0  # number of the first signal
        self.deferred = False
        self._since = 0.0  # time of the first signal
        self._second_ends_process = second_ends_process
        self._previous: dict[int, Any] = {}

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        # A signal that is ignored, as SIGINT is in a shell's background jobs, stays ignored.
        self._previous = {s: signal.getsignal(s) for s in STOP_SIGNALS if signal.getsignal(s) is not signal.SIG_IGN}
        with contextlib.ExitStack() as stack:
            if self._second_ends_process:
                stack.enter_context(self._watching())
            for signum, handler in self._previous.items():
                # None: a handler that was not installed from Python, and cannot be restored
                stack.callback(signal.signal, signum, signal.SIG_DFL if handler is None else handler)
                signal.signal(signum, self._handle)
            yield

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        """Runs between two instructions of the main thread."""
        if not self.received:
            self.received, self._since = signum, time.monotonic()
            if not self.deferred:
                raise InterruptedAtOnce(signum)
        elif not self._second_ends_process and time.monotonic() - self._since > _SECONDS_OF_ONE_SIGNAL:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Has a thread watch for the second signal, and for a first one that has no effect.

        The main thread may be in a backward pass, or wait for another process, for long before it runs a handler.
        Python writes the number of each signal to a socket at once.
        """
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        watcher = threading.Thread(target=self._watch, args=(reader,), name="stop signals", daemon=True)
        previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous)
            writer.send(b"\0")  # no signal. Closing is not enough, because child processes have the socket too.
            watcher.join()
            reader.close()
            writer.close()

    def _watch(self, reader: socket.socket) -> None:
        first, since = 0, 0.0
        while True:
            # Outside of a training, a main thread that does not even run the handler waits for what may never come.
            reader.settimeout(_SECONDS_TO_REACT if first and not self.received else None)
            try:
                signum = reader.recv(1)[0]
            except TimeoutError:
                if not self.received and not self.deferred:
                    _end_process(first, ended_at_once(first))
                continue
            if signum == 0:
                return
            if signum not in self._previous:
                continue
            if not first:
                first, since = signum, time.monotonic()
            elif time.monotonic() - since > _SECONDS_OF_ONE_SIGNAL:
                _end_process(first, f"{signal_name(signum)} again: ended at once, without a checkpoint.")


def _end_process(signum: int, message: str) -> NoReturn:
    """Ends this process and its children without returning to what they do.

    Args:
        signum: number of the signal that ends it.
        message: one line, printed once for all ranks.
    """
    for child in multiprocessing.active_children():
        child.kill()
    if (beat := heartbeat.current()) is not None:
        beat.post(message, 128 + signum)
    else:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{sys.argv[0]}: {message}\n".encode())
    os._exit(128 + signum)


_active: _Handlers | None = None  # handlers of this process


@contextlib.contextmanager
def stop_signals(*, second_ends_process: bool = False) -> Iterator[None]:
    """A context, or a decorator, in which :data:`STOP_SIGNALS` raise :class:`~clq.errors.Interrupted`.

    Only a main thread can receive signals: in other threads, and inside another such context, this does nothing. The
    handlers that were installed before are restored at the end.

    Args:
        second_ends_process: whether a second signal ends the process and its children at once, as on a command line.
            Otherwise it raises, as in a notebook. One that follows the first within a second counts as the first.
    """
    global _active
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _active = _Handlers(second_ends_process)
    try:
        with _active.installed():
            yield
    finally:
        _active = None


@contextlib.contextmanager
def deferred(defer: bool = True) -> Iterator[None]:
    """A context in which signals are only recorded, for :func:`received`.

    Args:
        defer: False for a part of such a context in which they raise again, one received before at its beginning.
    """
    handlers = _active
    if handlers is None:
        yield
        return
    before, handlers.deferred = handlers.deferred, defer
    try:
        if handlers.received and not defer:
            raise InterruptedAtOnce(handlers.received)
        yield
    finally:
        handlers.deferred = before


def received() -> int:
    """Number of the signal that this process has received, or 0."""
    return _active.received if _active is not None else 0


def shield_workers(loader: _Loader) -> _Loader:
    """Makes the workers of a data loader ignore the signals that a terminal or SLURM sends to all processes of a job.

    They end when the data loader tells them to, and with their own process, however that ends.

    Args:
        loader: loader with a ``worker_init_fn``, as torch's DataLoader and
            :class:`~clq.data.loader.TrainLoader` have it, or one that keeps it as ``dataset``, as Detectron2's do. Its
            workers must not have started.

    Returns:
        The same loader.
    """
    inner: Any = loader
    while not hasattr(inner, "worker_init_fn"):
        inner = inner.dataset
    inner.worker_init_fn = functools.partial(_start_worker, inner.worker_init_fn)
    _kill_workers_at_end_of(os.getpid())
    return loader


@functools.cache
def _kill_workers_at_end_of(process: int) -> None:
    """Registers :func:`_kill_workers` in this process, once. Finalizers, unlike atexit, also run in processes of it."""
    multiprocessing.util.Finalize(None, _kill_workers, exitpriority=100)


def _start_worker(init: Callable[[int], None] | None, worker_id: int) -> None:
    if init is not None:
        init(worker_id)
    for signum in STOP_SIGNALS:  # not blocked: threads of libraries, older than the mask, would receive them
        signal.signal(signum, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None  # a worker
    threading.Thread(target=_end_after_parent, args=(parent.pid,), daemon=True).start()


def _end_after_parent(parent: int) -> None:
    """Ends this worker when its process is gone: torch looks for it every 5 s only."""
    while os.getppid() == parent:
        time.sleep(_SECONDS_OF_ORPHANS)
    os._exit(0)


def _kill_workers() -> None:
    """Ends the workers that are left when their process ends: multiprocessing would send SIGTERM and wait forever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report a killed worker as an error
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _reset_in_child() -> None:
    """A forked process leaves the signals to its parent until it has handlers of its own."""
    global _active
    if _active is not None:
        signal.set_wakeup_fd(-1)
        for signum in _active._previous:
            signal.signal(signum, signal.SIG_IGN if signum == signal.SIGINT else signal.SIG_DFL)
        _active = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)
