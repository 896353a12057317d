"""What a rank and its monitor share: the rank's place in the job, and memory in which it shows what it does."""

import ctypes
from dataclasses import dataclass

# States of a rank. FAILED: by a mistake of the user or a signal. TROUBLED: by an exception, perhaps of another rank.
STARTING, RUNNING, LEFT, FAILED, TROUBLED = range(5)


class Board(ctypes.Structure):
    """What a rank tells its monitor, in shared memory.

    Attributes:
        state: one of the states above.
        key: prefix of this job's keys in the store, known after the process group is initialized.
        iteration: iteration that the rank is in, -1 before the first.
        watched: whether the rank is in a part of the training in which it may not be idle.
        waiting: whether the rank waits for other ranks, as last sampled.
        location: file, line and function that the main thread is in, as last sampled.
        message: why the rank fails, in one line.
        status: exit status of the rank that fails.
    """

    _fields_ = (
        ("state", ctypes.c_int),
        ("key", ctypes.c_char * 64),
        ("iteration", ctypes.c_int64),
        ("watched", ctypes.c_bool),
        ("waiting", ctypes.c_bool),
        ("location", ctypes.c_char * 256),
        ("message", ctypes.c_char * 4096),
        ("status", ctypes.c_int),
    )

    def in_iteration(self) -> str:
        """The iteration, as the end of a phrase; empty before the first."""
        return f" in iteration {self.iteration}" if self.iteration >= 0 else ""


@dataclass(frozen=True)
class Place:
    """A process's place in the job.

    Attributes:
        rank: number of the process in [0, world_size).
        world_size: number of processes.
        local_rank: number of the process on its machine.
        machine: number of the machine.
        address: host name of the job's store, which the launcher of the first machine, or rank 0, serves.
        port: its port.
    """

    rank: int
    world_size: int
    local_rank: int
    machine: int
    address: str
    port: int
