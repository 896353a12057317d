"""Detectron2's DefaultTrainer with the checkpointer, optimizers, loaders and training step of this project."""

import contextlib
import logging
import os
import weakref

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import DatasetMapperTTA
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from clq import compat
from clq.checkpoint.checkpointer import Checkpointer
from clq.checkpoint.detector_info import DetectorInfo, config_text
from clq.data.categories import find_categories
from clq.data.loader import TrainLoader, build_train_loader
from clq.data.mapper import build_test_mapper, build_train_mapper
from clq.data.num_classes import fill_num_classes
from clq.engine import heartbeat, signals
from clq.engine.amp import build_step, inference_autocast
from clq.engine.best import EndedEarly
from clq.engine.hook_list import complete_hooks
from clq.engine.metrics_csv import FILE_NAME, CSVWriter
from clq.engine.optimizer import adopt_groups, build_optimizer
from clq.engine.process_group import share_buffers
from clq.engine.schedule import scale_to_workers, with_iterations
from clq.engine.trackers import build_trackers
from clq.errors import UserError, blamed_on
from clq.evaluation.coco import BoxEvaluator, ReportSettings, report_on_results
from clq.modeling.meta_arch.clq import CLQ
from clq.modeling.test_time_augmentation import DenseTTA
from clq.modeling.tiled import TiledDetector, nms_threshold

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains the box detector that a config describes, and evaluates it with COCO's metrics.

    Args:
        cfg: config of the training.

    Raises:
        UserError: the config has a mistake.
    """

    def __init__(self, cfg: CfgNode):
        # This repeats DefaultTrainer.__init__, which hard-codes the classes of the step and the checkpointer.
        TrainerBase.__init__(self)
        for name in ("detectron2", "clq"):  # logging is not set up, as in a notebook
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
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            max_gib=cfg.MODEL.MAX_WEIGHTS_GIB,
            detector=describe(cfg),
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.waited = 0  # evaluations without a better result that have ended the training early, if any
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """See :func:`~clq.engine.schedule.scale_to_workers`."""
        return scale_to_workers(cfg, num_workers)

    def build_hooks(self) -> list[HookBase]:
        """Returns Detectron2's hooks and those of this project.

        Checkpoints are kept as ``SOLVER.CHECKPOINTS_KEPT`` says, and evaluations in between save the best one.
        With ``SOLVER.EMA``, every evaluation also evaluates the moving average of the weights. Its results are called
        ``EMA/bbox/AP`` and so on, and its detections are written to the folder ``ema/inference``. With ``TEST.AUG``,
        the training ends with an evaluation with test-time augmentation.
        """
        hooks, self._stop_hook = complete_hooks(self, super().build_hooks())
        return hooks

    def build_writers(self) -> list[EventWriter]:
        """Returns Detectron2's writers, that of ``metrics.csv``, and those of ``LOGGING``."""
        trainer = weakref.proxy(self)

        def start() -> int:
            return trainer.start_iter

        path = os.path.join(self.cfg.OUTPUT_DIR, FILE_NAME)
        return [*super().build_writers(), CSVWriter(path, start), *build_trackers(self.cfg, start)]

    def test_average(self, model: nn.Module) -> dict:
        """Evaluates the moving average of the weights."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "ema")
        logger.info("Evaluation of the moving average of the weights (SOLVER.EMA):")
        return {"EMA": self.test(cfg, model)}

    def train(self) -> dict | None:
        """Runs the training; returns the results of the last evaluation on the main process, and None on others."""
        # Detectron2 logs a traceback of every exception, but a mistake of the user is reported in one line.
        logging.getLogger("detectron2.engine.train_loop").addFilter(_is_not_user_error)
        if self.start_iter >= max(self.max_iter, 1):  # interrupted after the last step, before its result was saved
            self.checkpointer.save("model_final", iteration=self.start_iter - 1)
        with signals.stop_signals(), signals.deferred():
            try:
                super().train()
            except EndedEarly:
                pass
            except signals.InterruptedAtOnce as e:  # in an evaluation, which changes nothing
                self._stop_hook.end(e.signum)
        return getattr(self, "_last_eval_results", None) if comm.is_main_process() else None

    def after_train(self) -> None:
        """Detectron2's, without the evaluation that would follow a last step that has failed, or is evaluated."""
        if self.iter < self.max_iter:
            self._hooks: list[HookBase] = [hook for hook in self._hooks if not isinstance(hook, EvalHook)]
        elif self.waited:
            self._hooks = [hook for hook in self._hooks if not (isinstance(hook, EvalHook) and hook._period)]
            self._report_early_end()
        super().after_train()

    def _report_early_end(self) -> None:
        """Writes the reports on the last evaluation, of which nobody knew that it would be the last."""
        cfg = self.cfg
        if not cfg.TEST.REPORT or not comm.is_main_process():
            return
        for name in cfg.DATASETS.TEST:
            folder = os.path.join(cfg.OUTPUT_DIR, "inference", name)
            report_on_results(name, folder, _report_settings(cfg), cfg.TEST.DETECTIONS_PER_IMAGE)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: list | None = None) -> dict:
        """Evaluates a model as Detectron2 does, with ``TEST.AMP`` and ``DATASETS.TILE``."""
        share_buffers(model)
        # A signal ends an evaluation at once, even within a training. Of several processes none can end it alone.
        alone = comm.get_world_size() == 1
        interruptible = signals.deferred(False) if alone else contextlib.nullcontext()
        if cfg.DATASETS.TILE.SIZE:
            model = TiledDetector.from_config(cfg, model)
        if isinstance(evaluators, DatasetEvaluator):  # as Detectron2 allows
            evaluators = [evaluators]
        evaluators = evaluators or [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        if cfg.TEST.REPORT_CANDIDATES:
            for evaluator in evaluators:
                evaluator.keep_candidates(model, cfg.TEST.REPORT_CANDIDATES)
        with interruptible, inference_autocast(cfg), heartbeat.watched():
            results = super().test(cfg, model, evaluators)
        # The report's numbers are added here, after Detectron2 has printed what scripts read from its log.
        for name, evaluator in zip(cfg.DATASETS.TEST, evaluators, strict=True):
            if numbers := getattr(evaluator, "report_numbers", None):
                (results if len(evaluators) == 1 else results[name])["report"] = numbers
        return results

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: CLQ | DistributedDataParallel) -> dict:
        """Evaluates a model with the test-time augmentation of ``TEST.AUG``.

        The names of the results end with ``_TTA``, as in Detectron2.
        """
        logger.info("Evaluation with augmentation: short sides %s, flip %s", cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP)
        cfg = cfg.clone()
        cfg.defrost()
        cfg.INPUT.MIN_SIZE_TEST = 0  # the loader must not resize the images, which the augmentation resizes
        cfg.TEST.REPORT_CANDIDATES = 0  # each version of an image has candidates of its own
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, DenseTTA(model, DatasetMapperTTA(cfg)), evaluators)
        return {f"{name}_TTA": result for name, result in results.items()}

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Builds the model with channels-last weights, which are the fastest for convolutions."""
        return super().build_model(cfg).to(memory_format=torch.channels_last)

    def state_dict(self) -> dict:
        """The state of the hooks and of the step (optimizer, loss scale), which Detectron2 0.6 does not save."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Continues a training.

        Raises:
            UserError: the checkpoint has no state of an optimizer, or that of a different one.
        """
        step = state_dict.get("_trainer")
        if step is None:
            raise UserError(
                "--resume: the checkpoint has no optimizer state; start a new training from it as MODEL.WEIGHTS."
            )
        adopt_groups(self._trainer.optimizer.param_groups, step["optimizer"]["param_groups"], self.cfg.SOLVER.OPTIMIZER)
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(step)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See :func:`~clq.engine.optimizer.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        """Detectron2's scheduler; steps may be fractions of the training."""
        return super().build_lr_scheduler(with_iterations(cfg), optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """A loader that a resumed training continues, with the augmentations of ``INPUT`` and ``INPUT.AUG``."""
        return signals.shield_workers(build_train_loader(cfg, build_train_mapper(cfg)))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Builds Detectron2's loader with the image reader of this project."""
        return signals.shield_workers(build_detection_test_loader(cfg, dataset_name, mapper=build_test_mapper(cfg)))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> BoxEvaluator:
        """Builds the evaluator of COCO's box metrics, for as many detections per image as the detector may return.

        Within a training, it writes a report after the last iteration only; see also :meth:`_report_early_end`.
        """
        return BoxEvaluator(
            dataset_name,
            output_dir=os.path.join(output_folder or os.path.join(cfg.OUTPUT_DIR, "inference"), dataset_name),
            left_out_folder=cfg.OUTPUT_DIR,
            use_fast_impl=compat.has_compiled_ops(),
            max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
            quality_name=cfg.MODEL.CLQ.QUALITY.NAME,
            report=_report_settings(cfg) if cfg.TEST.REPORT and not _goes_on(cfg) else None,
        )


def _report_settings(cfg: CfgNode) -> ReportSettings:
    return ReportSettings(cfg.TEST.REPORT_PRECISION, nms_threshold(cfg))


def _goes_on(cfg: CfgNode) -> bool:
    """Whether this is called within a training that has iterations left."""
    try:
        return get_event_storage().iter + 1 < cfg.SOLVER.MAX_ITER
    except AssertionError:  # Detectron2's way to say that there is no training
        return False


def describe(cfg: CfgNode) -> DetectorInfo:
    """What checkpoints say about the detector of a config."""
    cfg = cfg.clone()
    cfg.defrost()
    fill_num_classes(cfg)
    categories = find_categories(cfg)
    return DetectorInfo(config_text(cfg), categories.names, categories.ids)


def _is_not_user_error(record: logging.LogRecord) -> bool:
    # Of several ranks, all but the first to fail are told in obscure words that another one is gone.
    return not (record.exc_info and (isinstance(record.exc_info[1], UserError) or comm.get_world_size() > 1))
