"""Hooks of the trainer in addition to those of Detectron2."""

import functools
import json
import logging
import os
from collections import defaultdict
from typing import Any

from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicCheckpointer, PeriodicWriter, PreciseBN
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter
from fvcore.common.history_buffer import HistoryBuffer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from clq.checkpoint.checkpointer import Checkpointer
from clq.checkpoint.detector_info import KEY, DetectorInfo
from clq.checkpoint.folder import FINAL, FINAL_EMA, checkpoints
from clq.checkpoint.storage import save_safetensors, save_torch
from clq.engine.heartbeat import Heartbeat

logger = logging.getLogger(__name__)

Tensors = tuple[Tensor, ...] | list[Tensor]


class ResumablePreciseBN(PreciseBN):
    """Detectron2's PreciseBN on images that follow from the seed and the iteration, as the batches of a step do.

    Its data loader has to be a :class:`~clq.data.loader.TrainLoader`. Each update begins with the batch of the next
    iteration, in the order of the training.
    """

    def update_stats(self) -> None:
        """Computes the statistics."""
        if self._disabled:
            return
        self._data_loader.seed = self.trainer._trainer.data_loader.seed  # that of the training that is resumed
        self._data_loader.start = self.trainer.iter + 1
        super().update_stats()
        self._data_iter = None  # with its workers


class EMAHook(HookBase):
    """Keeps an exponential moving average of a model's parameters and buffers, in float32 like these.

    After the first step the average equals the model. The step after n others keeps min(decay, (1 + n) / (10 + n)) of
    the average, so that it soon forgets the start of the training. Integer buffers, which are counters, are copied from
    the model.

    The average is part of the trainer's checkpoints, so a resumed training continues it. A training that reaches its
    last iteration writes the average to ``model_final_ema.pth``, which can be used as ``MODEL.WEIGHTS``.

    Args:
        model: model that is trained, which may be wrapped in DistributedDataParallel.
        decay: largest share of the average that a step keeps, in [0, 1).
        folder: folder for ``model_final_ema.pth``.
        detector: what that file says about its detector.
    """

    def __init__(self, model: nn.Module, decay: float, folder: str, detector: DetectorInfo | None = None):
        if isinstance(model, DistributedDataParallel):
            model = model.module
        self._model = model
        self._average = AveragedModel(model, multi_avg_fn=self._update, use_buffers=True)
        self.decay = decay
        self.folder = folder
        self.detector = detector

    @property
    def model(self) -> nn.Module:
        """A separate model whose weights are the average."""
        return self._average.module

    def _update(self, averages: Tensors, values: Tensors, _: Tensor | int) -> None:
        """Updates averages of one dtype in place, in every step but the first."""
        if averages[0].is_floating_point():
            n = int(self._average.n_averaged)
            get_ema_multi_avg_fn(min(self.decay, (1 + n) / (10 + n)))(averages, values, n)
        else:
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)

    def before_train(self) -> None:
        """Warns if the resumed checkpoint has no average."""
        if self.trainer.start_iter > 0 and not self._average.n_averaged:
            logger.warning("--resume: the checkpoint comes from a training without SOLVER.EMA; the average starts now")

    def after_step(self) -> None:
        """Updates the average."""
        self._average.update_parameters(self._model)

    def after_train(self) -> None:
        """Writes the average of a training that was not ended by an error."""
        if self.trainer.iter >= self.trainer.max_iter and comm.is_main_process():
            data: dict[str, Any] = {"model": self.model.state_dict()}
            if self.detector is not None:
                data[KEY] = self.detector.to_plain()
            save_torch(data, os.path.join(self.folder, f"{FINAL_EMA}.pth"))

    def state_dict(self) -> dict:
        """The average and its number of steps."""
        return self._average.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        """Continues a saved average."""
        self._average.load_state_dict(state_dict)


class NewestCheckpoints(PeriodicCheckpointer):
    """Saves a checkpoint every ``period`` steps and at the end, and keeps the newest ones.

    Args:
        checkpointer: checkpointer of the training.
        period: number of steps from one checkpoint to the next.
        kept: number of checkpoints to keep besides the final and the best one; 0 for all.
    """

    def __init__(self, checkpointer: Checkpointer, period: int, kept: int):
        super().__init__(checkpointer, period, max_to_keep=kept or None)

    def before_train(self) -> None:
        """Counts the checkpoints of a training that is resumed among those to keep."""
        super().before_train()
        folder = self.checkpointer.save_dir
        names = [name for name in reversed(checkpoints(folder)) if name != f"{FINAL}.pth"]
        self.recent_checkpoints = [os.path.join(folder, name) for name in names]


class WriterOfEvaluations(PeriodicWriter):
    """Detectron2's PeriodicWriter, which also writes after each evaluation.

    The storage keeps the last value of each metric. Of evaluations that follow each other faster than the writer
    writes, all but the last would be lost.

    Args:
        writers: the writers.
        period: number of steps from one time that they write to the next.
        evaluation_period: number of steps from one evaluation to the next; 0 for none.
    """

    def __init__(self, writers: list[EventWriter], period: int, evaluation_period: int):
        super().__init__(writers, period)
        self._evaluation_period = evaluation_period

    def before_train(self) -> None:
        """Writes an evaluation that has been repeated before the first step."""
        self._write_values()

    def after_step(self) -> None:
        super().after_step()
        if self._evaluation_period > 0 and (self.trainer.iter + 1) % self._evaluation_period == 0:
            self._write_values()

    def _write_values(self) -> None:
        """Lets all writers write what is new, except the one that prints the state of the training each time."""
        for writer in self._writers:
            if not isinstance(writer, CommonMetricPrinter):
                writer.write()


class FinalSafetensors(HookBase):
    """Writes the weights of a training that comes to its end to ``model_final.safetensors``.

    Args:
        model: model that is trained, in DistributedDataParallel or not.
        folder: folder of the file.
        detector: what the file says about its detector.
    """

    def __init__(self, model: nn.Module, folder: str, detector: DetectorInfo | None = None):
        self._model = model.module if isinstance(model, DistributedDataParallel) else model
        self.folder = folder
        self.detector = detector

    def after_train(self) -> None:
        """Writes the file, unless the training was ended by an error."""
        if self.trainer.iter >= self.trainer.max_iter and comm.is_main_process():
            metadata = {} if self.detector is None else {KEY: json.dumps(self.detector.to_plain())}
            save_safetensors(self._model.state_dict(), os.path.join(self.folder, f"{FINAL}.safetensors"), metadata)


class ShortHistory(HookBase):
    """Lets the training keep only the newest values of each number that it logs.

    Detectron2 keeps a million of each, which grow by about a megabyte in a thousand iterations, and reads at most 1,000
    of them: the median of the time of an iteration, for the estimate of the time that is left.
    """

    length = 1000

    def before_train(self) -> None:
        """Replaces the empty histories of the training that begins."""
        self.trainer.storage._history = defaultdict(functools.partial(HistoryBuffer, self.length))


class HeartbeatHook(HookBase):
    """Reports the iteration to the other ranks; in a step, unlike in what hooks do after it, no rank may be idle.

    Args:
        heartbeat: heartbeat of this process.
    """

    def __init__(self, heartbeat: Heartbeat):
        self._heartbeat = heartbeat

    def before_step(self) -> None:
        self._heartbeat.begin_step(self.trainer.iter)

    def after_step(self) -> None:
        self._heartbeat.end_step()
