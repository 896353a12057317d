"""Detectron2's DefaultTrainer with this project's checkpointer, optimizers, loaders and step."""

import logging
import os
import weakref

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import DatasetMapperTTA
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.utils import _foreach_utils

from clq import compat
from clq.checkpoint.checkpointer import Checkpointer
from clq.data.mapper import build_test_mapper, build_train_mapper
from clq.engine import heartbeat
from clq.engine.amp import build_step, inference_autocast
from clq.engine.hooks import EMAHook, HeartbeatHook
from clq.engine.process_group import share_buffers
from clq.errors import UserError, blamed_on
from clq.modeling.test_time_augmentation import DenseTTA

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains any box detector of a config, evaluates with COCO's metrics."""

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer.__init__ in its own order, but for the classes of step and checkpointer, which it hard-codes.
        TrainerBase.__init__(self)
        for name in ("detectron2", "clq"):  # as when a script has not set up logging: in a notebook
            if not logging.getLogger(name).isEnabledFor(logging.INFO):
                setup_logger(name=name)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        ddp = {} if cfg.MODEL.DEVICE.startswith("cuda") else {"device_ids": None}
        model = create_ddp_model(model, broadcast_buffers=False, **ddp)
        self._trainer = build_step(cfg, model, loader, optimizer)
        with blamed_on("SOLVER.STEPS, MAX_ITER, GAMMA and WARMUP_*"):
            self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Detectron2's, but for the learning rate: :func:`learning_rate` scales it with the batch, once."""
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        if scaled is not cfg and cfg.SOLVER.REFERENCE_BATCH > 0:
            scaled.defrost()
            scaled.SOLVER.BASE_LR = cfg.SOLVER.BASE_LR
            scaled.freeze()
        return scaled

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's, and those of ``SOLVER.EMA`` and ``TEST.AUG``.

        With the first, the average of the weights is evaluated whenever the weights are: results ``EMA/bbox/AP`` and so
        on, detections in the folder ``ema/inference``. With the second, a training ends with a test with augmentation.
        """
        hooks, cfg = super().build_hooks(), self.cfg.clone()
        own = next(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
        if cfg.TEST.AUG.ENABLED:
            hooks.insert(own + 1, EvalHook(0, lambda: self.test_with_TTA(self.cfg, self.model)))  # before the writers
        if cfg.SOLVER.EMA.ENABLED:
            average = EMAHook(self.model, cfg.SOLVER.EMA.DECAY, cfg.OUTPUT_DIR)
            cfg.defrost()
            cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "ema")

            def evaluate():
                logger.info("Evaluation of the moving average of the weights (SOLVER.EMA):")
                return {"EMA": self.test(cfg, average.model)}

            hooks.insert(own + 1, EvalHook(cfg.TEST.EVAL_PERIOD, evaluate))
            hooks.insert(0, average)  # before the checkpointer, which saves it
        if (beat := heartbeat.current()) is not None:
            hooks.insert(0, HeartbeatHook(beat))
        return hooks

    def train(self) -> dict | None:
        """Runs the training; returns the last evaluation's results on the main process."""
        # Detectron2 logs a traceback of whatever ends a training; a mistake in the data is said in one line instead.
        logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_mistake)
        super().train()
        return getattr(self, "_last_eval_results", None) if comm.is_main_process() else None

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: list | None = None) -> dict:
        """Detectron2's, in the precision of ``TEST.AMP``."""
        share_buffers(model)
        with inference_autocast(cfg), heartbeat.watched():
            return super().test(cfg, model, evaluators)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict:
        """:meth:`test` with the augmentation of ``TEST.AUG``; names of results end with ``_TTA``, as in Detectron2."""
        logger.info("Test with augmentation: short sides %s, flip %s", cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP)
        cfg = cfg.clone()
        cfg.defrost()
        cfg.INPUT.MIN_SIZE_TEST = 0  # the loader leaves images as they are: each is resized once, not twice
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, DenseTTA(model, DatasetMapperTTA(cfg)), evaluators)
        return {f"{name}_TTA": result for name, result in results.items()}

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Detectron2's, with weights in the memory format that convolutions are fastest in."""
        return super().build_model(cfg).to(memory_format=torch.channels_last)

    # The step's own state (optimizer, loss scale), which Detectron2 0.6 leaves out of checkpoints and main does not.
    def state_dict(self) -> dict:
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Continues a training.

        Raises:
            UserError: the checkpoint is of a training with another optimizer or without its state.
        """
        step = state_dict.get("_trainer")
        if step is None:
            raise UserError("--resume: the checkpoint has no optimizer's state; start anew from it as MODEL.WEIGHTS.")
        self._check_resumable(step["optimizer"]["param_groups"], self._trainer.optimizer.param_groups)
        for theirs, ours in zip(step["optimizer"]["param_groups"], self._trainer.optimizer.param_groups, strict=True):
            if "fused" in ours:  # of the machine, not of the training: it may go on where there are no fused kernels
                theirs["fused"] = ours["fused"]
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(step)

    def _check_resumable(self, theirs: list[dict], ours: list[dict]) -> None:
        """Holds the parameter groups of a checkpoint's optimizer against those of this training's."""
        if ("betas" in theirs[0]) != ("betas" in ours[0]):
            raise UserError(
                f"SOLVER.OPTIMIZER {self.cfg.SOLVER.OPTIMIZER}: the checkpoint to resume is of a training with "
                "another; use that, or start anew from it as MODEL.WEIGHTS."
            )
        if [len(g["params"]) for g in theirs] != [len(g["params"]) for g in ours]:
            raise UserError(
                "--resume: the checkpoint's optimizer has other groups of parameters; set SOLVER.WEIGHT_DECAY_NORM, "
                "WEIGHT_DECAY_BIAS, BIAS_LR_FACTOR and MODEL.BACKBONE.FREEZE_AT as they were, or start anew from it."
            )
        if theirs[0].get("initial_lr") != ours[0]["initial_lr"]:
            rates = ours[0]["initial_lr"], theirs[0]["initial_lr"]
            logger.warning("Learning rate %g is not used: the training resumed goes on with its own, %g", *rates)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """``SOLVER.OPTIMIZER`` with Detectron2's parameter groups, gradient clipping, and :func:`learning_rate`."""
        lr, s = learning_rate(cfg), cfg.SOLVER
        kinds = {
            "SGD": (torch.optim.SGD, {"momentum": s.MOMENTUM, "nesterov": s.NESTEROV}),
            "AdamW": (torch.optim.AdamW, {"fused": has_fused_kernels(model)}),  # one pass over the weights, not ten
        }
        if s.OPTIMIZER not in kinds:
            raise UserError(f"SOLVER.OPTIMIZER: {s.OPTIMIZER} is not one of {', '.join(kinds)}.")
        kind, kwargs = kinds[s.OPTIMIZER]
        params = get_default_optimizer_params(
            model,
            base_lr=lr,
            weight_decay_norm=s.WEIGHT_DECAY_NORM,
            bias_lr_factor=s.BIAS_LR_FACTOR,
            weight_decay_bias=s.WEIGHT_DECAY_BIAS,
        )
        with blamed_on("SOLVER.BASE_LR, MOMENTUM, WEIGHT_DECAY and CLIP_GRADIENTS"):
            return maybe_add_gradient_clipping(cfg, kind)(params, lr=lr, weight_decay=s.WEIGHT_DECAY, **kwargs)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """Detectron2's loader with the augmentations of ``INPUT`` and ``INPUT.AUG``."""
        return build_detection_train_loader(cfg, mapper=build_train_mapper(cfg))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Detectron2's loader with this project's reader of images."""
        return build_detection_test_loader(cfg, dataset_name, mapper=build_test_mapper(cfg))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> COCOEvaluator:
        """COCO's box metrics, over as many detections an image as the detector may return (COCO: 100)."""
        return COCOEvaluator(
            dataset_name,
            tasks=("bbox",),
            output_dir=os.path.join(output_folder or os.path.join(cfg.OUTPUT_DIR, "inference"), dataset_name),
            use_fast_impl=compat.has_compiled_ops(),
            max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        )


def _is_no_mistake(record: logging.LogRecord) -> bool:
    # Of several ranks, all but the first to fail are told in obscure words that another one is gone.
    return not (record.exc_info and (isinstance(record.exc_info[1], UserError) or comm.get_world_size() > 1))


def has_fused_kernels(model: nn.Module) -> bool:
    """Whether the installed torch has fused optimizers for all devices that the model's parameters are on.

    Fused kernels came to CUDA first and to CPUs with torch 2.4. There is no public list of these devices; where torch
    has no private one either, CUDA alone counts.
    """
    devices = getattr(_foreach_utils, "_get_fused_kernels_supported_devices", lambda: ["cuda"])()
    return all(p.device.type in devices for p in model.parameters())


def learning_rate(cfg: CfgNode) -> float:
    """``SOLVER.BASE_LR`` scaled linearly from ``SOLVER.REFERENCE_BATCH`` images to ``SOLVER.IMS_PER_BATCH``; logged."""
    base, batch, reference = cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_BATCH
    if reference <= 0:
        logger.info("Learning rate %g: SOLVER.BASE_LR as it is (SOLVER.REFERENCE_BATCH is 0)", base)
        return base
    lr = base * batch / reference
    logger.info("Learning rate %g = SOLVER.BASE_LR %g x %d images a batch / %d", lr, base, batch, reference)
    return lr
