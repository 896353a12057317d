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


def is_clq_command() -> bool:
    """Whether this process has started as ``clq``, ``python -m clq`` or ``python -m clq.doctor``.

    That no longer holds once the name of the command is known: ``sys.argv[0]`` is then, for example, ``clq train``.
    """
    return _module() in ("clq", "clq.doctor") or Path(sys.argv[0]).stem == "clq"


def _is_command() -> bool:
    """Whether this process runs ``clq``, ``python -m clq.…``, or train_net.py, demo.py or a tool of a checkout."""
    if is_clq_command() or _module().startswith("clq."):
        return True
    script = Path(sys.argv[0]).resolve()
    checkout = script.parents[1] if script.parent.name == "tools" else script.parent
    return script.suffix == ".py" and checkout / "projects/CLQ/clq" == Path(__file__).resolve().parents[1]


def _module() -> str:
    """Name of the module that ``python -m`` is about to run; empty if this process has started in another way."""
    if sys.argv[0] != "-m":
        return ""
    return next((name for option, name in itertools.pairwise(sys.orig_argv) if option == "-m"), "")


def _end(signum: int, frame: FrameType | None) -> None:
    if int(os.environ.get("RANK", 0)) == 0:  # of several processes one reports it
        command = "clq" if is_clq_command() or sys.argv[0] == "-m" else sys.argv[0]
        os.write(2, f"{command}: {ended_at_once(signum)}\n".encode())
    os._exit(128 + signum)
