"""The hook that ends a training for a signal."""

import os
from typing import NoReturn

from detectron2.engine import HookBase
from detectron2.utils import comm

from clq.checkpoint.checkpointer import Checkpointer
from clq.engine import signals
from clq.engine.nonfinite import FiniteWeights
from clq.errors import Interrupted, signal_name


class StopHook(HookBase):
    """Ends a training after a step, with a checkpoint, when one of the processes has received a signal.

    All ranks end after the same step, because each step gathers the signals of all (:class:`TrainingStep`). The hook
    comes after Detectron2's PeriodicCheckpointer and before evaluations.

    Args:
        checkpointer: checkpointer of the training.
        weights: check of what a checkpoint would hold.
        period: number of iterations between checkpoints.
    """

    def __init__(self, checkpointer: Checkpointer, weights: FiniteWeights, period: int):
        self._checkpointer = checkpointer
        self._weights = weights
        self._period = period

    def after_step(self) -> None:
        if (signum := self._signal()) and self.trainer.iter + 1 < self.trainer.max_iter:
            self.end(signum)

    def after_train(self) -> None:
        if (signum := self._signal()) and self.trainer.iter >= self.trainer.max_iter:
            self.end(signum)

    def end(self, signum: int) -> NoReturn:
        """Ends the training, whose last step is complete. All ranks call this together.

        Args:
            signum: number of the signal.

        Raises:
            Interrupted: always, with a message on the main process.
            NonFiniteError: the weights are not finite.
        """
        done = self.trainer.iter >= self.trainer.max_iter
        if done:
            path = os.path.join(self._checkpointer.save_dir, "model_final.pth")
            message = f"the training is complete; --eval-only MODEL.WEIGHTS {path} evaluates its result."
        else:
            path = self._save()
            message = (
                f"stopped after iteration {self.trainer.iter}; the same command with --resume continues from {path}."
            )
        comm.synchronize()  # a process that ends earlier would have the launcher end the others
        name = signal_name(signum)
        raise Interrupted(signum, f"{name}: {message}" if comm.is_main_process() else "")

    def _save(self) -> str:
        """Writes a checkpoint of this iteration unless the training has written it already; returns its path."""
        iteration = self.trainer.iter
        name = f"model_{iteration:07d}"
        if self._period <= 0 or (iteration + 1) % self._period:
            self._weights.check()
            self._checkpointer.save(name, iteration=iteration)  # on the main process only
        return os.path.join(self._checkpointer.save_dir, f"{name}.pth")

    def _signal(self) -> int:
        """Number of the signal that all ranks know of, or 0."""
        return self.trainer._trainer.signal if comm.get_world_size() > 1 else signals.received()
