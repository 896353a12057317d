#!/usr/bin/env python3
"""Train a detector, resume its training, or evaluate it. The arguments are those of Detectron2's own train_net.py.

train_net.py --config-file configs/CLQ/clq_R_50_FPN_1x.yaml --num-gpus 8
torchrun --nproc-per-node 8 train_net.py --config-file configs/CLQ/clq_R_50_FPN_1x.yaml
train_net.py --config-file ... --resume
train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
"""

import clq
from clq.checkpoint.checkpointer import Checkpointer
from clq.checkpoint.folder import refuse_overwriting
from clq.data.checks import check_datasets
from clq.data.left_out import write_left_out
from clq.data.num_classes import fill_num_classes
from clq.engine.config_checks import check_model, check_training, make_folder
from clq.engine.launch import argument_parser, launch_cli
from clq.engine.process_group import check_same_checkpoints, set_up_other_ranks
from clq.engine.resume import is_finished
from clq.engine.signals import stop_signals
from clq.engine.trainer import Trainer
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger


def setup(args):
    """Checks everything that the call names, and returns the frozen config, or None if its training is finished.

    The number of classes is filled in, so that the saved copy of the config can be used without the training set.
    """
    cfg = clq.setup_cfg(args.config_file, args.opts)
    check_model(cfg)
    if not args.eval_only:
        check_training(cfg)
        if not args.resume:
            refuse_overwriting(cfg.OUTPUT_DIR)
        max_iter = Trainer.auto_scale_workers(cfg, comm.get_world_size()).SOLVER.MAX_ITER
        if args.resume and is_finished(cfg.OUTPUT_DIR, max_iter):
            return None
    if comm.is_main_process():
        make_folder("OUTPUT_DIR", cfg.OUTPUT_DIR)
        setup_logger(cfg.OUTPUT_DIR, name="clq")  # default_setup covers Detectron2's own
    left_out = check_datasets(cfg, splits=("TEST",) if args.eval_only else ("TRAIN", "TEST"))
    if comm.is_main_process():
        write_left_out(cfg.OUTPUT_DIR, left_out)
    fill_num_classes(cfg)
    cfg.freeze()
    if comm.is_main_process():
        default_setup(cfg, args)
    else:
        set_up_other_ranks(cfg, args.eval_only)
    if args.resume:
        check_same_checkpoints(cfg.OUTPUT_DIR)
    return cfg


@stop_signals(second_ends_process=True)
def main(args):
    """Trains, or evaluates with --eval-only."""
    cfg = setup(args)
    if cfg is None:
        return
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, strict=True, max_gib=cfg.MODEL.MAX_WEIGHTS_GIB)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            Trainer.test_with_TTA(cfg, model)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":
    launch_cli(main, argument_parser().parse_args())
