"""Train a detector, resume its training, or evaluate it. The arguments are those of Detectron2's own train_net.py.

    clq train --config-file cells.yaml
    clq train --config-file cells.yaml --dry-run
    clq train --config-file cells.yaml --resume
    clq eval --config-file cells.yaml MODEL.WEIGHTS output/model_final.pth

--config-file takes a path, or the name of a config of the project such as CLQ/clq_R_50_FPN_1x.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

import clq
from clq import configs
from clq.checkpoint.checkpointer import Checkpointer
from clq.checkpoint.folder import refuse_overwriting
from clq.data.checks import check_datasets
from clq.data.left_out import write_left_out
from clq.data.num_classes import fill_num_classes
from clq.engine.config_checks import check_model, check_report, check_training, make_folder
from clq.engine.dry_run import dry_run
from clq.engine.launch import argument_parser, launch
from clq.engine.process_group import check_same_checkpoints, set_up_other_ranks
from clq.engine.resume import is_finished
from clq.engine.schedule import resolve_epochs
from clq.engine.signals import stop_signals
from clq.engine.trainer import Trainer
from clq.errors import UserError


def main(argv: Sequence[str] | None = None) -> int | None:
    """Trains or evaluates in as many processes as the arguments or torchrun ask for; returns the exit status."""
    return launch(run, _parse_args(argv))


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser()
    parser.description = __doc__
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="try the training in a temporary folder: two iterations, an evaluation of a few images and a checkpoint, "
        "with the memory and the time that they take",
    )
    args = parser.parse_args(argv)
    if args.dry_run and (args.resume or args.eval_only):
        raise UserError("--dry-run: tries a new training; leave --resume and --eval-only out.")
    if args.config_file and not os.path.isfile(args.config_file):
        args.config_file = configs.path(args.config_file)  # Detectron2's default_setup opens it
    return args


@stop_signals(second_ends_process=True)
def run(args: argparse.Namespace) -> None:
    """What each process does: it trains, or evaluates with ``--eval-only``."""
    if args.dry_run:
        _run_dry(args)
    elif (cfg := _setup(args)) is None:
        return
    elif args.eval_only:
        model: Any = Trainer.build_model(cfg)
        checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, strict=True, max_gib=cfg.MODEL.MAX_WEIGHTS_GIB)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            Trainer.test_with_TTA(cfg, model)
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()


def _run_dry(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        cfg = _setup(args, comm.all_gather(folder)[0])
        assert cfg is not None
        dry_run(cfg)
        comm.synchronize()  # before the main process deletes the folder


def _setup(args: argparse.Namespace, output_dir: str | None = None) -> CfgNode | None:
    """Checks everything that the call names, and returns the frozen config, or None if its training is finished.

    The number of classes is filled in, so that the saved copy of the config can be used without the training set.

    Args:
        args: of the command.
        output_dir: folder to use instead of OUTPUT_DIR, which is then left as it is.
    """
    cfg = clq.setup_cfg(args.config_file, args.opts)
    check_model(cfg)
    check_report(cfg)
    if not args.eval_only:
        check_training(cfg)
        if not args.resume:
            refuse_overwriting(cfg.OUTPUT_DIR)
        if args.resume and is_finished(cfg):
            return None
    cfg.OUTPUT_DIR = output_dir or cfg.OUTPUT_DIR
    if comm.is_main_process():
        make_folder("OUTPUT_DIR", cfg.OUTPUT_DIR)
        setup_logger(cfg.OUTPUT_DIR, name="clq")  # default_setup covers Detectron2's own
    left_out = check_datasets(cfg, splits=("TEST",) if args.eval_only else ("TRAIN", "TEST"))
    if comm.is_main_process():
        write_left_out(cfg.OUTPUT_DIR, left_out)
    fill_num_classes(cfg)
    if not args.eval_only:
        resolve_epochs(cfg)
    cfg.freeze()
    if comm.is_main_process():
        default_setup(cfg, args)
    else:
        set_up_other_ranks(cfg, args.eval_only)
    if args.resume:
        check_same_checkpoints(cfg.OUTPUT_DIR)
    return cfg
