"""What Linux reports of other processes in ``/proc``: their state, processor time and children.

On a system without ``/proc`` there is nothing to find: no process has children, is stopped or is idle.
"""

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_IDLE_SHARE = 0.02  # of one core: the most that polling for data, timers and heartbeats take of a process at rest


class Process(NamedTuple):
    """A process, told from a later one of the same number by the time at which it started."""

    pid: int
    started: int


class Status(NamedTuple):
    """State (one letter, as in ``ps``), processor time in seconds, and the process."""

    state: str
    cpu_time: float
    process: Process


def status(pid: int) -> Status | None:
    """The status of a process, or None if it does not exist."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return Status(fields[0], (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND, Process(pid, int(fields[19])))


def descendants(pid: int, besides: int) -> list[Status]:
    """Children, their children and so on of a process, but for the process ``besides`` and its own."""
    found: list[Status] = []
    parents = [pid]
    while parents:
        for path in Path(f"/proc/{parents.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                children = [child for child in map(int, path.read_text().split()) if child != besides]
                found += filter(None, map(status, children))
                parents += children
    return found


def kill(processes: Iterable[Process]) -> None:
    """Ends processes at once, stopped ones too; those that have ended already are left out."""
    for process in processes:
        now = status(process.pid)
        if now is not None and now.process == process:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


class Idleness:
    """For how long a rank has neither reached another iteration nor used the processor.

    Waiting for a data loader whose workers are busy is no idleness, because their processor time counts as well.

    Args:
        window: seconds over which less than 2% of one core is idleness.
    """

    def __init__(self, window: float):
        self._cpu_time = _IDLE_SHARE * window
        self._since: float | None = None
        self._used: dict[Process, float] = {}
        self._iteration = -1

    def update(self, now: float, family: Iterable[Status], iteration: int, may_be_idle: bool) -> float:
        """Returns the seconds of idleness.

        Args:
            now: the time in seconds.
            family: the rank and its descendants. Without the rank itself nothing is known, and it counts as busy.
            iteration: iteration that the rank is in.
            may_be_idle: whether the rank is in a part of the training in which idleness is no fault.
        """
        used = {member.process: member.cpu_time for member in family}
        grown = sum(max(time - self._used.get(process, 0.0), 0.0) for process, time in used.items())
        if self._since is None or may_be_idle or not used or iteration != self._iteration or grown > self._cpu_time:
            self._since, self._used, self._iteration = now, used, iteration
        return now - self._since
