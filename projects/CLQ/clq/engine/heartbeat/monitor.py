"""The process beside each rank that shows its life to the other ranks, and ends it when one of them is lost.

Each monitor looks after its own rank, which may be killed, be stopped or hang, and after the monitor of the next rank,
which falls silent with its machine or the network. The first to find a fault publishes it in the job's store. Every
monitor that reads it there, or that no longer reaches the store, ends its own rank with all child processes.

The monitor is forked, so nothing here may touch CUDA, the logging module or anything else that holds locks.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from typing import NoReturn

from clq.engine.heartbeat import processes
from clq.engine.heartbeat.board import FAILED, LEFT, TROUBLED, Board, Place
from clq.engine.heartbeat.exchange import NEXT_STEP, PERIOD, Exchange
from clq.engine.heartbeat.processes import Idleness, Process, Status

_PERIOD = 0.5  # seconds between two looks at the rank
_IGNORED = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2  # they are the rank's business


class Monitor:
    """Runs in a process that the rank forks.

    Args:
        board: memory shared with the rank.
        place: place of the rank in the job.
        timeout: seconds for which a rank may be silent, stopped or idle.
    """

    def __init__(self, board: Board, place: Place, timeout: float):
        self._board = board
        self._place = place
        self._timeout = timeout
        self._pid = os.getppid()
        self._name = f"rank {place.rank} ({socket.gethostname()}, process {self._pid})"
        self._children: list[Process] = []
        # Seconds that this process has run. It stands still while the whole job is suspended, as from a terminal.
        self._now = 0.0
        self._not_stopped = 0.0  # when the rank was last seen not to be stopped
        self._idleness, self._own_idleness = Idleness(timeout), Idleness(timeout)
        self._idle = 0.0  # seconds, whether the rank waits for others or not
        self._exchange: Exchange | None = None
        self._error_output = 2

    def run(self) -> NoReturn:
        """Watches until the rank leaves or the job fails. The exit status is 0 if a failure was reported here first."""
        status = 1
        try:
            self._error_output = os.dup2(2, 3)
            os.closerange(4, 4096)  # among them the pipe whose end shows the launcher that the rank has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # torch writes whole stacks when a connection is lost
            for number in _IGNORED:
                signal.signal(number, signal.SIG_IGN)
            while (ended := self._look()) is None:
                time.sleep(_PERIOD)
                self._now += _PERIOD
            status = ended
        except Exception as e:
            self._print(f"{self._name}: its monitor failed: {type(e).__name__}: {e}")
        finally:
            os._exit(status)

    def _look(self) -> int | None:
        """Looks once at everything; returns the exit status if this process has to end."""
        state = self._board.state
        if self._exchange is None and self._board.key:
            key = self._board.key.decode()
            self._exchange = Exchange(self._place, key, self._timeout, self._record, lambda: self._now)
        if state == LEFT:
            if self._exchange is not None:
                self._exchange.finish()
            return 0
        if state in (FAILED, TROUBLED):
            message = self._board.message.decode(errors="replace")
            return 0 if self._report(message, own=True, status=self._board.status) else 1
        rank = processes.status(self._pid)
        children = processes.descendants(self._pid, besides=os.getpid())
        if os.getppid() != self._pid:  # it has ended, and lost its children before this or the last look
            processes.kill(self._children)
            self._report_end()
            return 0
        self._children = [child.process for child in children]
        fault = self._fault_of_rank([rank, *children] if rank else [])
        if fault is None and self._exchange is not None:
            fault = self._exchange.fault()
        if fault is None:
            return None
        self._report(fault)
        if rank:
            processes.kill([rank.process, *self._children])
        return 0

    def _fault_of_rank(self, family: list[Status]) -> str | None:
        """The fault of this monitor's rank in one line."""
        board = self._board
        if not (family and family[0].state == "T"):
            self._not_stopped = self._now
        elif self._now - self._not_stopped >= self._timeout:
            return f"{self._name} has been stopped for {self._timeout:g} s{board.in_iteration()}; {NEXT_STEP}."
        known = self._now, family, board.iteration
        self._idle = self._idleness.update(*known, may_be_idle=not board.watched)
        if self._own_idleness.update(*known, may_be_idle=not board.watched or board.waiting) >= self._timeout:
            where = f"{board.location.decode(errors='replace')}{board.in_iteration()}"
            return f"{self._name} has hung for {self._timeout:g} s at {where}; {NEXT_STEP}."
        return None

    def _record(self) -> dict:
        return {
            "name": self._name,
            "iteration": self._board.iteration,
            "location": self._board.location.decode(errors="replace"),
            "idle": self._idle,
            "left": self._board.state == LEFT,
        }

    def _report_end(self) -> None:
        """Reports that the rank has ended without saying why; its launcher knows the signal or the exit status."""
        if self._exchange is not None and self._exchange.is_cut:  # the launcher ended it, as it ends all of a machine
            self._report(self._exchange.cut())
        else:
            self._report(f"{self._name} was killed{self._board.in_iteration()}; {NEXT_STEP}.", to_launcher=False)

    def _report(self, message: str, *, status: int = 1, own: bool = False, to_launcher: bool = True) -> bool:
        """Publishes a failure and prints it, unless another one was first.

        Args:
            message: one line.
            status: exit status of the job: 2 for a mistake of the user, 128 + the number of a signal, otherwise 1.
            own: whether the rank itself reports it, and no other rank can.
            to_launcher: whether torch's launcher is to repeat it. Otherwise it gives the signal or the exit status.

        Returns:
            Whether this failure was the first.
        """
        failure = {"message": message, "rank": self._place.rank, "machine": self._place.machine, "status": status}
        mine, shown = True, status <= 2 or self._place.rank == 0  # a signal reaches all ranks
        if self._exchange is not None:
            failure, taken = self._exchange.publish(failure, await_cause=own and status == 1)
            if taken:
                mine = failure["rank"] == self._place.rank
                # A failure on another machine is printed once on this one.
                shown = mine or (self._place.local_rank == 0 and failure["machine"] != self._place.machine)
            elif status != 2:
                mine, shown = self._is_first_without_store(own)
        if shown:
            self._print(str(failure["message"]))
        path = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if path and to_launcher:
            with contextlib.suppress(OSError), open(path, "w") as f:  # the launcher may have removed its folder
                json.dump({**failure, "timestamp": int(time.time())}, f)
        time.sleep(2 * PERIOD)  # the others read it, before the end of this rank lets the launcher end the store
        return mine

    def _is_first_without_store(self, own: bool) -> tuple[bool, bool]:
        """Whether a failure counts as the first, and whether to print it, where the store can not be asked."""
        served_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        if self._exchange is not None and self._exchange.is_closed and served_by_launcher and self._place.machine == 0:
            return False, False  # the launcher of this machine has ended the job, and has reported why
        return own, own or self._place.local_rank == 0  # the other ranks of this machine are cut off as well

    def _print(self, line: str) -> None:
        os.write(self._error_output, f"{sys.argv[0]}: {line}\n".encode())
