"""Starts a script in the number of processes that its command line asks for."""

import sys
from argparse import Namespace
from collections.abc import Callable

import torch
from detectron2.engine import launch
from torch.multiprocessing import ProcessExitedException

from clq.utils.cli import run_cli


def launch_cli(main: Callable[[Namespace], object], args: Namespace) -> None:
    """Runs a script in one process per GPU, see :func:`~clq.utils.cli.run_cli`, and exits.

    Args:
        main: function that each process calls as ``main(args)``.
        args: parsed command line, see :func:`detectron2.engine.default_argument_parser`; its ``num_gpus`` and
            ``num_machines`` say how many processes run.
    """
    found = torch.cuda.device_count()
    if args.num_machines > 1 and args.num_gpus < 1:  # Detectron2 would train separately on each machine
        print(f"{sys.argv[0]}: --num-machines {args.num_machines}: needs --num-gpus of at least 1.", file=sys.stderr)
        sys.exit(2)
    if args.num_gpus > found and args.num_gpus * args.num_machines > 1:  # a single process can run on the CPU
        asked = f"--num-gpus {args.num_gpus} --num-machines {args.num_machines}"
        print(f"{sys.argv[0]}: {asked}: this machine has {found} GPU(s); ask for fewer.", file=sys.stderr)
        sys.exit(2)
    try:
        launch(run_cli, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (main, args))
    except ProcessExitedException as e:  # the process has already reported the reason
        sys.exit(e.exit_code)
