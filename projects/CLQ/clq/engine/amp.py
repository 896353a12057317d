"""Mixed precision: in training after ``SOLVER.AMP``, in evaluation and demo after ``TEST.AMP``."""

from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from clq.config import check_keys
from clq.engine.nonfinite import NonFinitePolicy
from clq.engine.step import TrainingStep

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


def build_step(cfg: CfgNode, model: nn.Module, loader: Iterable, optimizer: torch.optim.Optimizer) -> TrainingStep:
    """Returns the step of a training, with autocast if ``SOLVER.AMP`` enables it.

    Raises:
        UserError: the dtype is unknown, or a key of ``SOLVER.ON_NONFINITE`` does not accept its value.
    """
    dtype, policy = autocast_dtype(cfg, "SOLVER"), NonFinitePolicy.from_config(cfg)
    if dtype is None:
        return TrainingStep(model, loader, optimizer, policy)
    device = torch.device(cfg.MODEL.DEVICE).type
    return AutocastTrainer(model, loader, optimizer, policy, device=device, dtype=dtype)


class AutocastTrainer(TrainingStep):
    """A counterpart of Detectron2's AMPTrainer for any device and dtype. With float16 it scales the loss.

    Args:
        model: model to train, see :class:`TrainingStep`.
        data_loader: iterable of batches, see :class:`TrainingStep`.
        optimizer: optimizer of the model, see :class:`TrainingStep`.
        policy: what happens where a step is not finite, see :class:`TrainingStep`.
        device: type of the model's device, such as ``cuda``.
        dtype: dtype of autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        policy: NonFinitePolicy | None = None,
        *,
        device: str,
        dtype: torch.dtype,
    ):
        super().__init__(model, data_loader, optimizer, policy)
        self.device, self.dtype = device, dtype
        self.grad_scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

    def _forward(self, data: object) -> dict[str, Tensor]:
        with torch.autocast(self.device, self.dtype):
            return self.model(data)

    def _backward(self, loss: Tensor) -> None:
        self.grad_scaler.scale(loss).backward()
        self.grad_scaler.unscale_(self.optimizer)  # before the optimizer clips them

    def _update(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _undo(self) -> None:
        super()._undo()
        if self.grad_scaler.is_enabled():
            self.grad_scaler.update(self.grad_scaler.get_scale())  # the scale stays, and the next step may unscale

    def _gradients_must_be_finite(self) -> bool:
        # A scale that is too large makes them infinite. The scaler then leaves the step out and lowers the scale.
        return not self.grad_scaler.is_enabled() or self.grad_scaler.get_scale() <= 1

    def state_dict(self) -> dict:
        """The state of the optimizer and of the loss scaling."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores :meth:`state_dict`, or the state of a trainer without loss scaling."""
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):  # empty or absent after a training without loss scaling
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
