"""The best checkpoint of a training, and its early end where the evaluations do not become better any more."""

import logging
import os
import re
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine.hooks import BestCheckpointer, EvalHook
from detectron2.utils import comm
from torch import nn

from clq.checkpoint.checkpointer import Checkpointer
from clq.checkpoint.detector_info import KEY
from clq.checkpoint.folder import BEST, FINAL
from clq.checkpoint.storage import save_torch
from clq.engine.nonfinite import FiniteWeights
from clq.errors import UserError

logger = logging.getLogger(__name__)

_AVERAGE = "EMA/"  # prefix of the results of the moving average
_METRIC = re.compile(r"(.+/)?bbox/(AP|AP50|AP75|APs|APm|APl|AP-.+)")


class EndedEarly(BaseException):
    """Ends the loop of a training whose last step is done. Detectron2 logs a traceback of every Exception."""


class BestCheckpoint(BestCheckpointer):
    """Saves ``model_best.pth`` after each evaluation that is better than all before, also those before a resume.

    With a patience, it ends the training on all ranks together after so many evaluations in a row that are not better.
    ``model_final.pth`` is then the checkpoint of the last step. Evaluations do not count before the first one that has
    a value: without any detection, there is none.

    A checkpoint of the iteration of an evaluation is written before it, and does not know its result. A training that
    is resumed from it repeats the evaluation, so that the best value and the patience are those of a training without
    an interruption.

    Args:
        period: number of steps from one evaluation to the next.
        checkpointer: checkpointer of the training.
        metric: name of the metric in the storage of the main process.
        patience: number of evaluations without a better value that end the training; 0 for none.
        average: model of the moving average, if the metric is that of its evaluation. ``model_best.pth`` then holds its
            weights alone.
        weights: check of what a checkpoint would hold, before the last one of an early end.
    """

    def __init__(
        self,
        period: int,
        checkpointer: Checkpointer,
        metric: str = "bbox/AP",
        *,
        patience: int = 0,
        average: nn.Module | None = None,
        weights: FiniteWeights | None = None,
    ):
        super().__init__(period, checkpointer, metric, file_prefix=BEST)
        if average is not None:
            self._checkpointer = _AverageSaver(checkpointer, average)
        self._training, self._weights = checkpointer, weights
        self.patience = patience
        self.waited = 0  # evaluations since the best one
        self.counted = 0  # number of steps before the last evaluation that has been counted

    def before_train(self) -> None:
        """Repeats the evaluation that the resumed checkpoint does not know of, and ends what had been ended early."""
        start = self.trainer.start_iter
        if 0 < start < self.trainer.max_iter:
            self.trainer.iter = self.trainer.storage.iter = start - 1
            if self._period > 0 and start % self._period == 0 and self.counted < start:
                logger.info("Iteration %d is evaluated again: its checkpoint was written before the result", start - 1)
                for hook in self.trainer._hooks:
                    if isinstance(hook, EvalHook) and hook._period:
                        hook._do_eval()
                self._best_checking()
            self._end_if_waited()
            self.trainer.iter = self.trainer.storage.iter = start

    def after_step(self) -> None:
        before = self.counted
        super().after_step()
        if self.counted != before:
            self._end_if_waited()

    def after_train(self) -> None:
        if self.counted < self.trainer.max_iter:  # not after an early end, whose evaluation is counted
            super().after_train()

    def _best_checking(self) -> None:
        best = self.best_iter
        if comm.is_main_process():  # the others have no metrics
            super()._best_checking()
        if self.best_iter != best:
            self.waited = 0
        elif self.best_metric is not None:
            self.waited += 1
        self.counted = self.trainer.iter + 1

    def _end_if_waited(self) -> None:
        """Ends the training after the step of ``trainer.iter``; all ranks call this together.

        Raises:
            EndedEarly: the patience is at its end.
        """
        if not self.patience:
            return
        waited = comm.all_gather(self.waited)[0]
        if waited < self.patience:
            return
        trainer = self.trainer
        if self._weights is not None:
            self._weights.check()
        self._training.save(FINAL, iteration=trainer.iter)  # on the main process only
        trainer.waited = waited
        trainer.iter = trainer.max_iter = trainer.iter + 1  # hooks take this for the end of the training
        if comm.is_main_process():
            best = f"{self.best_metric:.2f} after iteration {self.best_iter}"
            logger.info(
                "The training ends early, after iteration %d: %d evaluations were not better than the best %s, %s "
                "(SOLVER.PATIENCE)",
                *(trainer.iter - 1, waited, self._val_metric, best),
            )
        raise EndedEarly

    def state_dict(self) -> dict:
        """The best value so far, its iteration, and what has been evaluated since."""
        names = "best_metric", "best_iter", "waited", "counted"
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict) -> None:
        """Continues with a saved state; those of older versions have a best value and its iteration only."""
        for name, value in state_dict.items():
            setattr(self, name, value)


class _AverageSaver:
    """Takes the place of a checkpointer, and saves the moving average with what is said about its detector."""

    def __init__(self, checkpointer: Checkpointer, average: nn.Module):
        self._checkpointer, self._average = checkpointer, average

    def save(self, name: str, **kwargs: Any) -> None:
        data: dict[str, Any] = {"model": self._average.state_dict(), **kwargs}
        if self._checkpointer.detector is not None:
            data[KEY] = self._checkpointer.detector.to_plain()
        path = os.path.join(self._checkpointer.save_dir, f"{name}.pth")
        logger.info("Saving the moving average to %s", path)
        save_torch(data, path)


def best_metric(cfg: CfgNode) -> str:
    """The name that the metric of ``TEST.BEST_METRIC`` has in the storage.

    Where there are several test sets, Detectron2 puts the name of each before the names of its metrics.

    Raises:
        UserError: there is no such metric, or it is that of the moving average and ``SOLVER.EMA.ENABLED`` is False.
    """
    metric, sets = cfg.TEST.BEST_METRIC, cfg.DATASETS.TEST
    prefix = _AVERAGE if metric.startswith(_AVERAGE) else ""
    match = _METRIC.fullmatch(metric[len(prefix) :])
    if match is None or (match[1] and match[1][:-1] not in sets):
        raise UserError(
            f"TEST.BEST_METRIC {metric}: must be bbox/AP, AP50, AP75, APs, APm, APl or AP-NAME of a class, after EMA/ "
            "for the moving average and after NAME/ for one of DATASETS.TEST."
        )
    if prefix and not cfg.SOLVER.EMA.ENABLED:
        raise UserError(f"TEST.BEST_METRIC {metric}: needs SOLVER.EMA.ENABLED True; otherwise set it to bbox/AP.")
    own = match[0].removeprefix(match[1] or "")
    return f"{prefix}{(match[1] or sets[0] + '/') if len(sets) > 1 else ''}{own}"


def is_of_average(metric: str) -> bool:
    """Whether a metric of :func:`best_metric` is that of the moving average of the weights."""
    return metric.startswith(_AVERAGE)
