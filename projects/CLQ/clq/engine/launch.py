"""Starting a script in as many processes as it asks for."""

import sys
from collections.abc import Callable

import torch
from detectron2.engine import launch
from torch.multiprocessing import ProcessExitedException

from clq.utils.cli import run_cli


def launch_cli(main: Callable, args) -> None:
    """:func:`~clq.utils.cli.run_cli` in as many processes as Detectron2's ``--num-gpus``, ``--num-machines`` ask for.

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
