"""``clq COMMAND ...``: finds the command and imports its module, and no other.

To add a command, write a module with ``main(argv: Sequence[str] | None = None) -> int | None`` and name it in
:data:`COMMANDS`. A mistake of the user is a :class:`~clq.errors.UserError`.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

import clq
from clq.errors import UserError
from clq.utils.cli import run_cli

COMMANDS = {  # name: (module, what it does)
    "train": ("clq.commands.train", "train a detector, or resume its training"),
    "eval": ("clq.commands.eval", "evaluate a detector on the test sets of its config"),
    "report": ("clq.commands.report", "write a report on detections: what scores mean, errors, what could be won"),
    "predict": ("clq.commands.predict", "detect objects in images"),
    "convert": ("clq.commands.convert", "convert the weights of another code base"),
    "check-data": ("clq.commands.check_data", "check the data sets of a config, and compare objects with anchors"),
    "browse": ("clq.commands.browse", "draw images as a training sees them, suspicious annotations first"),
    "export": ("clq.commands.export", "write a detector as one file: ONNX, torch.export or TorchScript"),
    "app": ("clq.commands.app", "show detections and what is behind them on a local web page"),
    "doctor": ("clq.doctor", "report what is installed, whether it works, and how to fix what does not"),
}
_WITHOUT_LIBRARY = {"doctor"}  # works where torch or Detectron2 cannot be imported


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits with its status.

    From then on ``sys.argv`` is that of the command, whose name messages and ``--help`` show.

    Args:
        argv: name and arguments of the command; by default those of the process.
    """
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    sys.argv = ["clq", name, *words]
    if name in ("--help", "-h"):
        print(usage())
        sys.exit(0)
    if name == "--version":
        print(f"clq {clq.__version__}")
        sys.exit(0)
    if name not in COMMANDS:
        run_cli(_refuse, name)
    sys.argv = [f"clq {name}", *words]
    run_cli(_import(name).main, words)


def usage() -> str:
    """The text of ``clq --help``."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items())
    return (
        f"usage: clq COMMAND ...\n       clq --version\n\n{commands}\n\n`clq COMMAND --help` describes the arguments."
    )


def _refuse(name: str) -> NoReturn:
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}."
    raise UserError(f"{name}: no such command; {hint}")


def _import(name: str) -> ModuleType:
    """Imports the module of a command, which takes seconds; a package that cannot be imported is one line."""
    try:
        if name not in _WITHOUT_LIBRARY:
            importlib.import_module("clq.library")  # first, because it makes Detectron2 importable
        return importlib.import_module(COMMANDS[name][0])
    except ImportError as e:
        if (e.name or "").partition(".")[0] == "clq":
            raise
        print(f"{sys.argv[0]}: {' '.join(str(e).split())}; `clq doctor` reports how to fix it.", file=sys.stderr)
        sys.exit(2)
