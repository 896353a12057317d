"""Signals that end a command while it still imports torch and Detectron2, which takes some seconds.

Only the standard library is imported, or a signal would come before the handlers are installed.
"""

import itertools
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from clq.errors import STOP_SIGNALS, ended_at_once

_ROOT = Path(__file__).resolve().parents[4]  # of the repository, which has train_net.py and tools/
_before: dict[int, Any] = {}


def install() -> None:
    """Ends the process with one line and the status 128 + its number for a signal, until :func:`restore`.

    Only commands of this project are changed, and no program of others that imports it. Nothing is raised, because an
    exception within the imports of a C extension may be lost.
    """
    if not _is_command():
        return
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
            _before[signum] = signal.signal(signum, _end)


def restore() -> None:
    """Restores the handlers that :func:`install` has replaced."""
    while _before:
        signal.signal(*_before.popitem())


def _is_command() -> bool:
    """Whether this process runs train_net.py, demo.py or a script of tools/, or ``python -m clq.…``."""
    if sys.argv[0] == "-m":
        return any(pair[0] == "-m" and pair[1].startswith("clq.") for pair in itertools.pairwise(sys.orig_argv))
    return sys.argv[0].endswith(".py") and Path(sys.argv[0]).resolve().parent in (_ROOT, _ROOT / "tools")


def _end(signum: int, frame: FrameType | None) -> None:
    if int(os.environ.get("RANK", 0)) == 0:  # of several processes one reports it
        command = "clq" if sys.argv[0] == "-m" else sys.argv[0]
        os.write(2, f"{command}: {ended_at_once(signum)}\n".encode())
    os._exit(128 + signum)
