"""Hooks of the trainer in addition to those of Detectron2."""

import logging
import os

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

logger = logging.getLogger(__name__)

Tensors = tuple[Tensor, ...] | list[Tensor]


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
    """

    def __init__(self, model: nn.Module, decay: float, folder: str):
        if isinstance(model, DistributedDataParallel):
            model = model.module
        self._model = model
        self._average = AveragedModel(model, multi_avg_fn=self._update, use_buffers=True)
        self.decay = decay
        self.folder = folder

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
            with PathManager.open(os.path.join(self.folder, "model_final_ema.pth"), "wb") as f:
                torch.save({"model": self.model.state_dict()}, f)

    def state_dict(self) -> dict:
        """The average and its number of steps."""
        return self._average.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        """Continues a saved average."""
        self._average.load_state_dict(state_dict)
