"""Starting a script: processes, and mistakes of the user in one readable line instead of a traceback."""

import argparse
import sys
from collections.abc import Callable

import torch
from detectron2.engine import launch
from torch.multiprocessing import ProcessExitedException

from clq.errors import UserError


def positive(text: str) -> int:
    """A count on the command line, for argparse."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be at least 1")
    return value


def count(text: str) -> int:
    """As :func:`positive`, or 0."""
    return 0 if text == "0" else positive(text)


def run_cli(main: Callable, *args) -> None:
    """Calls ``main(*args)`` and exits: with what it returns if that is an int, with 2 and one line for a UserError."""
    try:
        status = main(*args)
    except UserError as e:
        # From a data loader's process it comes as the last line of a traceback.
        message = str(e).splitlines()[-1].removeprefix(f"{UserError.__module__}.{UserError.__qualname__}: ")
        print(f"{sys.argv[0]}: {message}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


def launch_cli(main: Callable, args) -> None:
    """:func:`run_cli` in as many processes as Detectron2's ``--num-gpus``, ``--num-machines`` ask for.

    Args:
        main: called as ``main(args)`` in each process.
        args: of :func:`detectron2.engine.default_argument_parser`.
    """
    found = torch.cuda.device_count()
    if args.num_machines > 1 and args.num_gpus < 1:  # Detectron2 would train on each of them alone
        print(f"{sys.argv[0]}: --num-machines {args.num_machines}: takes --num-gpus of at least 1.", file=sys.stderr)
        sys.exit(2)
    if args.num_gpus > found and args.num_gpus * args.num_machines > 1:  # one process may do without
        asked = f"--num-gpus {args.num_gpus} --num-machines {args.num_machines}"
        print(f"{sys.argv[0]}: {asked}: this machine has {found} GPU(s); ask for fewer.", file=sys.stderr)
        sys.exit(2)
    try:
        launch(run_cli, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (main, args))
    except ProcessExitedException as e:  # a process has said why already
        sys.exit(e.exit_code)
