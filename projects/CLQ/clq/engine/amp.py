"""Mixed precision: in training after ``SOLVER.AMP``, in evaluation and demo after ``TEST.AMP``."""

import time
from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from torch import nn

from clq.config import check_keys

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def autocast_dtype(cfg: CfgNode, group: str) -> torch.dtype | None:
    """Returns the dtype in which convolutions and matrix products run, or None for float32 without autocast.

    Args:
        cfg: config of the model.
        group: group of keys whose ``AMP`` is read, ``SOLVER`` or ``TEST``. The dtype ``auto`` stands for fp16 on a GPU
            and for bf16 on other devices.

    Raises:
        UserError: the dtype is unknown.
    """
    amp = cfg[group].AMP
    check_keys(cfg, f"{group}.AMP")
    if not amp.ENABLED:
        return None
    if amp.DTYPE == "auto":
        return torch.float16 if cfg.MODEL.DEVICE.startswith("cuda") else torch.bfloat16
    return _DTYPES[amp.DTYPE]


def inference_autocast(cfg: CfgNode) -> torch.autocast:
    """Returns a context in which a model runs in the precision of ``TEST.AMP``.

    Raises:
        UserError: the dtype is unknown.
    """
    dtype = autocast_dtype(cfg, "TEST")
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, dtype, enabled=dtype is not None)


def build_step(cfg: CfgNode, model: nn.Module, loader: Iterable, optimizer: torch.optim.Optimizer) -> SimpleTrainer:
    """Returns Detectron2's inner trainer, with autocast if ``SOLVER.AMP`` enables it.

    Raises:
        UserError: the dtype is unknown.
    """
    dtype = autocast_dtype(cfg, "SOLVER")
    if dtype is None:
        return SimpleTrainer(model, loader, optimizer)
    return AutocastTrainer(model, loader, optimizer, device=torch.device(cfg.MODEL.DEVICE).type, dtype=dtype)


class AutocastTrainer(SimpleTrainer):
    """A counterpart of Detectron2's AMPTrainer for any device and dtype. With float16 it scales the loss.

    Args:
        model: model to train, see :class:`SimpleTrainer`.
        data_loader: iterable of batches, see :class:`SimpleTrainer`.
        optimizer: optimizer of the model, see :class:`SimpleTrainer`.
        device: type of the model's device, such as ``cuda``.
        dtype: dtype of autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        *,
        device: str,
        dtype: torch.dtype,
    ):
        super().__init__(model, data_loader, optimizer)
        self.device, self.dtype = device, dtype
        self.grad_scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

    def run_step(self) -> None:
        """Runs one step; gradients are unscaled before the optimizer clips them."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self.device, self.dtype):
            loss_dict = self.model(data)
            losses = sum(loss_dict.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        self._write_metrics(loss_dict, data_time)
        self.grad_scaler.unscale_(self.optimizer)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict:
        """The state of the optimizer and of the loss scaling."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores :meth:`state_dict`, or the state of a trainer without loss scaling."""
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):  # empty or absent after a training without loss scaling
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
