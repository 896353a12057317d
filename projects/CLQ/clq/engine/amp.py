"""Mixed precision as the config asks for it: of training, ``SOLVER.AMP``, and of evaluation and demo, ``TEST.AMP``."""

import time

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from torch import nn

from clq.config import check_keys

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def autocast_dtype(cfg: CfgNode, group: str) -> torch.dtype | None:
    """The type that convolutions and matrix products run in; None: float32, without autocast.

    Args:
        cfg: of a training or a trained model.
        group: ``SOLVER`` or ``TEST``, whose ``AMP`` counts. Its ``auto`` is fp16 on a GPU, bf16 elsewhere.

    Raises:
        UserError: a type that does not exist.
    """
    amp = cfg[group].AMP
    check_keys(cfg, f"{group}.AMP")
    if not amp.ENABLED:
        return None
    if amp.DTYPE == "auto":
        return torch.float16 if cfg.MODEL.DEVICE.startswith("cuda") else torch.bfloat16
    return _DTYPES[amp.DTYPE]


def inference_autocast(cfg: CfgNode) -> torch.autocast:
    """A context in which a model detects in the types of ``TEST.AMP``.

    Raises:
        UserError: see :func:`autocast_dtype`.
    """
    dtype = autocast_dtype(cfg, "TEST")
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, dtype, enabled=dtype is not None)


def build_step(cfg: CfgNode, model: nn.Module, loader, optimizer: torch.optim.Optimizer) -> SimpleTrainer:
    """The training step: single precision, or autocast as ``SOLVER.AMP`` says."""
    dtype = autocast_dtype(cfg, "SOLVER")
    if dtype is None:
        return SimpleTrainer(model, loader, optimizer)
    return AutocastTrainer(model, loader, optimizer, torch.device(cfg.MODEL.DEVICE).type, dtype)


class AutocastTrainer(SimpleTrainer):
    """Detectron2's AMPTrainer for any device and dtype; float16 with loss scaling.

    Args:
        model, data_loader, optimizer: as in :class:`SimpleTrainer`.
        device: type of the model's device.
        dtype: of the autocast region.
    """

    def __init__(self, model: nn.Module, data_loader, optimizer, device: str, dtype: torch.dtype):
        super().__init__(model, data_loader, optimizer)
        self.device, self.dtype = device, dtype
        self.grad_scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

    def run_step(self) -> None:
        """One step; gradients are unscaled before the optimizer clips them."""
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
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):  # a training without loss scaling has none to hand on
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
