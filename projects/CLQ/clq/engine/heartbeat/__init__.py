"""Signs of life of every process of a training, and the end of all of them when one is killed, stopped or hangs.

A collective operation of ``torch.distributed`` waits for a rank that will never come until its time-out, half an hour.
Each rank therefore forks a :class:`~clq.engine.heartbeat.monitor.Monitor`. It is a process, because a thread shows no
life while a long call, such as the parsing of a large json, holds Python's global lock.
"""

import contextlib
import ctypes
import mmap
import os
import sys
import threading
import time
from collections.abc import Iterator

from clq.engine.heartbeat.board import FAILED, LEFT, RUNNING, TROUBLED, Board, Place
from clq.engine.heartbeat.monitor import Monitor

# The innermost Python frame of a rank that waits for other ranks is in one of these.
_WAITING = "/torch/distributed/", "/torch/autograd/", "/torch/_tensor.py", "/detectron2/utils/comm.py"
_SAMPLING_PERIOD = 0.5  # seconds


class Heartbeat:
    """The heartbeat of this rank; it begins with the construction.

    Args:
        place: place of this rank in the job.
        timeout: seconds for which a rank may be silent, stopped or idle before the job ends.
    """

    def __init__(self, place: Place, timeout: float):
        self._board = Board.from_buffer(mmap.mmap(-1, ctypes.sizeof(Board)))  # shared with a forked process
        self._board.iteration = -1
        self._monitor = os.fork()
        if self._monitor == 0:
            Monitor(self._board, place, timeout).run()
        threading.Thread(target=self._sample, args=(threading.main_thread().ident,), daemon=True).start()

    def join(self, key: str) -> None:
        """Begins to exchange signs of life with the other ranks.

        Args:
            key: at most 63 ASCII characters, the same on all ranks and of this start of the job alone.
        """
        self._board.key = key.encode()
        self._board.state = RUNNING

    def begin_step(self, iteration: int) -> None:
        """Reports the iteration that begins. The rank may not be idle until :meth:`end_step`."""
        self._board.iteration = iteration
        self._board.watched = True

    def end_step(self) -> None:
        """From now on the rank may be idle, as when it writes a checkpoint or waits for one."""
        self._board.watched = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """In the enclosed code the rank may not be idle."""
        before, self._board.watched = self._board.watched, True
        try:
            yield
        finally:
            self._board.watched = before

    def leave(self) -> None:
        """The rank ends as it should."""
        self._board.state = LEFT
        self._await_monitor()

    def fail(self, message: str, status: int) -> bool:
        """The rank ends by a failure, and with it the job.

        The message is printed unless another rank has failed before, which is then the cause.

        Args:
            message: one line.
            status: exit status of the rank: 2 for a mistake of the user, 128 + the number of a signal, otherwise 1. A
                failure with 1 may follow from that of another rank, whose report is awaited.

        Returns:
            Whether this failure was the first.
        """
        self.post(message, status)
        return self._await_monitor() == 0

    def post(self, message: str, status: int) -> None:
        """Like :meth:`fail`, but does not wait; the monitor reports it although the rank is gone."""
        self._board.message = message.encode()[:4095]
        self._board.status = status
        self._board.state = TROUBLED if status == 1 else FAILED

    def _await_monitor(self) -> int:
        _, status = os.waitpid(self._monitor, 0)
        return os.waitstatus_to_exitcode(status)

    def _sample(self, main_thread: int) -> None:
        """Reports where the main thread is, for ever."""
        while True:
            frame = sys._current_frames().get(main_thread)
            if frame is not None:
                path = frame.f_code.co_filename
                self._board.waiting = any(part in path for part in _WAITING)
                location = f"{'/'.join(path.split('/')[-3:])}:{frame.f_lineno} ({frame.f_code.co_name})"
                self._board.location = location.encode("ascii", "replace")[:255]
            del frame
            time.sleep(_SAMPLING_PERIOD)


_current: Heartbeat | None = None


def start(place: Place, timeout: float) -> Heartbeat:
    """Starts the heartbeat of this process."""
    global _current
    _current = Heartbeat(place, timeout)
    return _current


def current() -> Heartbeat | None:
    """The heartbeat of this process; None where it is the only process, or where heartbeats are switched off."""
    return _current


def watched() -> contextlib.AbstractContextManager[None]:
    """:meth:`Heartbeat.watched` of this process's heartbeat, where it has one."""
    return _current.watched() if _current else contextlib.nullcontext()
