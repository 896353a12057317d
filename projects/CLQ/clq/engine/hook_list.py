"""The hooks of a training, in the order in which they have to run."""

from typing import TYPE_CHECKING

from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PeriodicWriter, PreciseBN

from clq.engine import heartbeat
from clq.engine.best import BestCheckpoint, best_metric, is_of_average
from clq.engine.curves import CurvesHook
from clq.engine.hooks import (
    EMAHook,
    FinalSafetensors,
    HeartbeatHook,
    NewestCheckpoints,
    ResumablePreciseBN,
    ShortHistory,
    WriterOfEvaluations,
)
from clq.engine.nonfinite import FiniteWeights
from clq.engine.resume import ExactResume
from clq.engine.stop_hook import StopHook

if TYPE_CHECKING:
    from clq.engine.trainer import Trainer


def complete_hooks(trainer: "Trainer", hooks: list[HookBase]) -> tuple[list[HookBase], StopHook]:
    """Adds this project's hooks to Detectron2's, or puts them in their place.

    Args:
        trainer: trainer of the hooks.
        hooks: Detectron2's hooks, which are replaced in place.

    Returns:
        All hooks, and the one among them that ends the training for a signal.
    """
    cfg, checkpointer = trainer.cfg, trainer.checkpointer
    period = cfg.SOLVER.CHECKPOINT_PERIOD
    hooks = [_replace(trainer, hook) for hook in hooks]
    states = {"model": checkpointer.model.state_dict, "optimizer": trainer.optimizer.state_dict}
    weights = FiniteWeights(period, **states)
    stop = StopHook(checkpointer, weights, period)
    average = None
    if cfg.SOLVER.EMA.ENABLED:
        average = EMAHook(trainer.model, cfg.SOLVER.EMA.DECAY, cfg.OUTPUT_DIR, checkpointer.detector)
        weights.add("average", average.model.state_dict)

    evaluation = next(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
    hooks[evaluation : evaluation + 1] = [stop, hooks[evaluation], *_evaluations(trainer, average, weights)]
    writing = next((i for i, hook in enumerate(hooks) if isinstance(hook, PeriodicCheckpointer)), evaluation)
    hooks.insert(writing, weights)
    if cfg.SOLVER.SAVE_SAFETENSORS:
        hooks.append(FinalSafetensors(trainer.model, cfg.OUTPUT_DIR, checkpointer.detector))
    if average is not None:
        hooks.insert(0, average)  # before the checkpointer, which saves it
    resume = ExactResume(trainer.model, trainer._trainer.data_loader, cfg)
    hooks += [CurvesHook(cfg.OUTPUT_DIR), resume, ShortHistory()]
    if (beat := heartbeat.current()) is not None:
        hooks.insert(0, HeartbeatHook(beat))
    return hooks, stop


def _replace(trainer: "Trainer", hook: HookBase) -> HookBase:
    """This project's hook in the place of one of Detectron2's, or the same."""
    cfg = trainer.cfg
    if isinstance(hook, PreciseBN):
        loader = trainer.build_train_loader(cfg)
        return ResumablePreciseBN(cfg.TEST.EVAL_PERIOD, trainer.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER)
    if isinstance(hook, PeriodicCheckpointer):  # on the main process only
        return NewestCheckpoints(trainer.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINTS_KEPT)
    if isinstance(hook, PeriodicWriter):
        return WriterOfEvaluations(hook._writers, hook._period, cfg.TEST.EVAL_PERIOD)
    return hook


def _evaluations(trainer: "Trainer", average: EMAHook | None, weights: FiniteWeights) -> list[HookBase]:
    """What follows Detectron2's evaluation, before the writers: other evaluations, and what depends on them."""
    cfg, hooks = trainer.cfg, list[HookBase]()
    period = cfg.TEST.EVAL_PERIOD
    if average is not None:
        model = average.model
        hooks.append(EvalHook(period, lambda: trainer.test_average(model)))
    if cfg.TEST.AUG.ENABLED:
        hooks.append(EvalHook(0, lambda: trainer.test_with_TTA(cfg, trainer.model)))
    if period and cfg.DATASETS.TEST:
        metric = best_metric(cfg)
        best = average.model if average is not None and is_of_average(metric) else None
        patience = cfg.SOLVER.PATIENCE
        args = period, trainer.checkpointer, metric
        hooks.append(BestCheckpoint(*args, patience=patience, average=best, weights=weights))
    return hooks
