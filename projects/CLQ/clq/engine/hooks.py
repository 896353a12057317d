"""Hooks of the trainer beside Detectron2's own."""

import logging
import os

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from clq.engine.heartbeat import Heartbeat

logger = logging.getLogger(__name__)


class EMAHook(HookBase):
    """Exponential moving average of a model's parameters and buffers, in their own type, float32.

    After the first step it is the model itself. Later steps keep min(decay, (1 + n) / (10 + n)) of it, n the number of
    steps before, so that it soon forgets where the training began. Integer buffers, which count, are the model's.

    The average is part of the trainer's checkpoints, so that a training that is resumed continues it. A training that
    comes to its end writes it to ``model_final_ema.pth``, for ``MODEL.WEIGHTS``.

    Args:
        model: that is trained, in DistributedDataParallel or not.
        decay: in [0, 1).
        folder: of ``model_final_ema.pth``.
    """

    def __init__(self, model: nn.Module, decay: float, folder: str):
        if isinstance(model, DistributedDataParallel):
            model = model.module
        self._model = model
        self._average = AveragedModel(model, multi_avg_fn=self._move, use_buffers=True)
        self.decay = decay
        self.folder = folder

    @property
    def model(self) -> nn.Module:
        """A model of its own, whose weights are the average."""
        return self._average.module

    def _move(self, averages: list[Tensor], values: list[Tensor], _) -> None:
        """Takes tensors of one type a step on; of those after the first."""
        if averages[0].is_floating_point():
            n = int(self._average.n_averaged)
            get_ema_multi_avg_fn(min(self.decay, (1 + n) / (10 + n)))(averages, values, n)
        else:
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)

    def before_train(self) -> None:
        if self.trainer.start_iter > 0 and not self._average.n_averaged:
            logger.warning("--resume: the checkpoint is of a training without SOLVER.EMA; the average starts now")

    def after_step(self) -> None:
        self._average.update_parameters(self._model)

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter and comm.is_main_process():  # not after an error
            with PathManager.open(os.path.join(self.folder, "model_final_ema.pth"), "wb") as f:
                torch.save({"model": self.model.state_dict()}, f)

    def state_dict(self) -> dict:
        return self._average.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        self._average.load_state_dict(state_dict)


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
