"""The length of a training in epochs, and the learning rate whose steps are fractions of the training."""

import logging

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer

from clq.config import check_keys
from clq.data.loader import count_images
from clq.errors import UserError

logger = logging.getLogger(__name__)

_MAX_WARMUP = 0.1  # share of a training in epochs


def resolve_epochs(cfg: CfgNode) -> None:
    """Sets ``SOLVER.MAX_ITER``, ``TEST.EVAL_PERIOD`` and ``SOLVER.CHECKPOINT_PERIOD`` from ``SOLVER.EPOCHS``, in place.

    An epoch has as many iterations as batches of ``SOLVER.IMS_PER_BATCH`` hold all images that the loader draws from.
    Without ``SOLVER.EPOCHS`` nothing changes. With ``DATASETS.ON_ERROR skip``, the data sets must have been checked.

    Args:
        cfg: config, which must not be frozen.

    Raises:
        UserError: a key is at fault, or a data set cannot be read.
    """
    solver = cfg.SOLVER
    check_keys(cfg, "SOLVER.EPOCHS", "SOLVER.CHECKPOINT_EPOCHS", "TEST.EVAL_EPOCHS")
    if not solver.EPOCHS:
        return
    images = count_images(cfg)
    iterations = max(1, -(-images // solver.IMS_PER_BATCH))  # rounded up
    solver.MAX_ITER = solver.EPOCHS * iterations
    cfg.TEST.EVAL_PERIOD = cfg.TEST.EVAL_EPOCHS * iterations
    solver.CHECKPOINT_PERIOD = solver.CHECKPOINT_EPOCHS * iterations


def scale_to_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
    """Scales a config to a number of processes as Detectron2 does, except for the learning rate, and resolves epochs.

    The learning rate is scaled to the batch by :func:`~clq.engine.optimizer.learning_rate`. Epochs are counted anew
    after the batch has been scaled, because a number of iterations that is scaled is rounded.

    Args:
        cfg: config, which may be frozen and is not changed.
        num_workers: number of processes.

    Returns:
        The scaled config, frozen if ``cfg`` is; ``cfg`` itself if nothing has to change.

    Raises:
        UserError: see :func:`resolve_epochs`.
    """
    scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
    if scaled is cfg and not cfg.SOLVER.EPOCHS:
        return cfg
    scaled = scaled.clone() if scaled is cfg else scaled
    scaled.defrost()
    if cfg.SOLVER.REFERENCE_BATCH > 0:
        scaled.SOLVER.BASE_LR = cfg.SOLVER.BASE_LR
    if _are_fractions(cfg):
        scaled.SOLVER.STEPS = cfg.SOLVER.STEPS
    resolve_epochs(scaled)
    if cfg.is_frozen():
        scaled.freeze()
    return scaled


def with_iterations(cfg: CfgNode) -> CfgNode:
    """Returns a config whose ``SOLVER.STEPS`` and ``SOLVER.WARMUP_ITERS`` are what Detectron2's schedulers expect.

    Steps that are fractions become iterations. With ``SOLVER.EPOCHS``, the warm-up takes at most a tenth of the
    training, so that the warm-up of a config for a large data set does not cover all of a training on a small one.

    Args:
        cfg: config whose epochs are resolved; it is not changed.
    """
    solver = cfg.SOLVER
    found = cfg.clone()
    found.defrost()
    if _are_fractions(cfg):
        found.SOLVER.STEPS = tuple(round(step * solver.MAX_ITER) for step in solver.STEPS)
    if solver.EPOCHS:
        found.SOLVER.WARMUP_ITERS = min(solver.WARMUP_ITERS, int(_MAX_WARMUP * solver.MAX_ITER))
        steps = f"steps at {list(found.SOLVER.STEPS)}" if "Step" in solver.LR_SCHEDULER_NAME else "no steps"
        logger.info(
            "SOLVER.EPOCHS %d: %d iterations of %d images; warm-up of %d, %s, evaluation every %d, checkpoint every %d",
            *(solver.EPOCHS, solver.MAX_ITER, solver.IMS_PER_BATCH, found.SOLVER.WARMUP_ITERS, steps),
            *(cfg.TEST.EVAL_PERIOD, solver.CHECKPOINT_PERIOD),
        )
    return found


def check_schedule(cfg: CfgNode) -> None:
    """Checks the keys of epochs, steps and early stopping against each other.

    Raises:
        UserError: steps are neither all iterations nor all fractions, or are iterations beside ``SOLVER.EPOCHS``; or
            there are no evaluations for ``SOLVER.PATIENCE``.
    """
    solver, steps = cfg.SOLVER, cfg.SOLVER.STEPS
    check_keys(cfg, "TEST.EVAL_EPOCHS")
    if not all(isinstance(step, (int, float)) and step >= 0 for step in steps):
        raise UserError(f"SOLVER.STEPS {list(steps)}: must be numbers of iterations, or fractions of the training.")
    fractions = [0 < step < 1 for step in steps]
    if any(fractions) and not (all(fractions) and list(steps) == sorted(steps)):
        raise UserError(
            f"SOLVER.STEPS {list(steps)}: must be numbers of iterations, or ascending fractions of the training."
        )
    if solver.EPOCHS and not all(fractions) and "Step" in solver.LR_SCHEDULER_NAME:
        shares = [round(step / max(solver.MAX_ITER, *steps, 1), 3) for step in steps]
        raise UserError(
            f"SOLVER.STEPS {list(steps)}: with SOLVER.EPOCHS they must be fractions of the training, such as {shares}."
        )
    evaluates = cfg.TEST.EVAL_EPOCHS if solver.EPOCHS else cfg.TEST.EVAL_PERIOD > 0
    if solver.PATIENCE and not (evaluates and cfg.DATASETS.TEST):
        key = "TEST.EVAL_EPOCHS" if solver.EPOCHS else "TEST.EVAL_PERIOD"
        raise UserError(
            f"SOLVER.PATIENCE {solver.PATIENCE}: needs evaluations during the training; set {key} and DATASETS.TEST, "
            "or set it to 0."
        )


def _are_fractions(cfg: CfgNode) -> bool:
    return bool(cfg.SOLVER.STEPS) and all(0 < step < 1 for step in cfg.SOLVER.STEPS)
