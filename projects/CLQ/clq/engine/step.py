"""One step of a training: its losses and gradients are checked before they change the weights."""

import math
import time
from collections.abc import Iterable
from typing import NoReturn

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, distributed, nn

from clq.engine import signals
from clq.engine.nonfinite import NonFinitePolicy, describe_step


class TrainingStep(SimpleTrainer):
    """Detectron2's SimpleTrainer, which leaves the weights alone where a loss or a gradient is not finite.

    After the backward pass, the losses, the largest gradient and the signal that this process has received are read
    from the device together, once, and gathered from all ranks. So all ranks decide the same.

    Args:
        model: model to train, see :class:`SimpleTrainer`.
        data_loader: iterable of batches, see :class:`SimpleTrainer`.
        optimizer: optimizer of the model, see :class:`SimpleTrainer`.
        policy: what happens where they are not finite; by default the training stops.

    Attributes:
        signal: number of a signal that one of the ranks had received by the last step, the same on all; or 0.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        policy: NonFinitePolicy | None = None,
    ):
        super().__init__(model, data_loader, optimizer)
        self.policy = policy or NonFinitePolicy()
        self.signal = 0
        self._data: object = None  # the last batch, to describe it
        self._losses: dict[str, float] = {}
        # Values before a step, of the running statistics of batch normalization and the like.
        self._buffers = [b.clone() for b in model.buffers()] if self.policy.skip else []

    def run_step(self) -> None:
        """Runs one step.

        Raises:
            NonFiniteError: it is not finite, and the policy ends the training.
        """
        start = time.perf_counter()
        self._data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        if self._buffers:
            torch._foreach_copy_(self._buffers, list(self.model.buffers()))
        try:
            losses = self._forward(self._data)
        except FloatingPointError as e:  # of Detectron2's proposal generators
            self._losses = {}
            reason = " ".join(str(e).split()).rstrip(".")
            self.policy.stop(reason, self._describe(has_gradients=False), together=False)
        self.optimizer.zero_grad()
        self._backward(sum(losses.values()))  # type: ignore[arg-type]  # a dict of losses is never empty
        ranks = self._gather(losses, data_time)
        self.signal = int(max(rank["signal"] for rank in ranks))
        if fault := self._fault(ranks, list(losses)):
            self._undo()
            self.policy.leave_out(fault, self._describe())
            get_event_storage().put_scalar("nonfinite_steps", self.policy.in_a_row, smoothing_hint=False)
            return
        self.policy.in_a_row = 0
        self._write_scalars(ranks, list(losses))
        self._update()

    def stop_as_nonfinite(self, reason: str) -> NoReturn:
        """Ends the training after a step, on all ranks together, with a file that describes the step.

        Args:
            reason: what is not finite, in words that follow the iteration.

        Raises:
            NonFiniteError: always.
        """
        self.policy.stop(reason, self._describe())

    def _forward(self, data: object) -> dict[str, Tensor]:
        """The losses of a batch."""
        return self.model(data)

    def _backward(self, loss: Tensor) -> None:
        """Computes the gradients."""
        loss.backward()

    def _update(self) -> None:
        """Changes the weights."""
        self.optimizer.step()

    def _undo(self) -> None:
        """Takes back what a step has changed before its update."""
        if self._buffers:
            torch._foreach_copy_(list(self.model.buffers()), self._buffers)

    def _gradients_must_be_finite(self) -> bool:
        """Whether gradients that are not finite are a fault. Called only if there are any."""
        return True

    def _gather(self, losses: dict[str, Tensor], data_time: float) -> list[dict[str, float]]:
        """The losses, ``gradient``, ``data_time`` and ``signal`` of each rank."""
        names = [*losses, "gradient", "data_time", "signal"]
        on_device = torch.stack([x.detach().float() for x in (*losses.values(), self._largest_gradient())])
        of_host = torch.tensor([data_time, float(signals.received())])
        if comm.get_world_size() == 1:
            rows = [[*on_device.tolist(), *of_host.tolist()]]
        else:
            device = on_device.device if distributed.get_backend() == "nccl" else torch.device("cpu")
            row = torch.cat((on_device.to(device), of_host.to(device, non_blocking=True)))
            gathered = [torch.empty_like(row) for _ in range(comm.get_world_size())]
            distributed.all_gather(gathered, row)
            rows = torch.stack(gathered).tolist()
        self._losses = dict(zip(losses, rows[comm.get_rank()], strict=False))
        return [dict(zip(names, row, strict=True)) for row in rows]

    def _largest_gradient(self) -> Tensor:
        """The largest absolute value of a gradient, a scalar on the device. Unlike a sum, it does not overflow."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.stack(torch._foreach_norm(gradients, math.inf)).max()

    def _fault(self, ranks: list[dict[str, float]], names: list[str]) -> str | None:
        """What is not finite in a step, in words that follow the iteration; None where all is."""
        for name in names:
            for rank in ranks:
                if not math.isfinite(rank[name]):
                    return f"{name} is {rank[name]}"
        gradient = next((r["gradient"] for r in ranks if not math.isfinite(r["gradient"])), None)
        if gradient is not None and self._gradients_must_be_finite():
            return f"a gradient is {gradient}"
        return None

    def _describe(self, *, has_gradients: bool = True) -> dict:
        args = self.iter, self._data, self._losses, self.optimizer, self.model
        return describe_step(*args, has_gradients=has_gradients)

    def _write_scalars(self, ranks: list[dict[str, float]], names: list[str]) -> None:
        """Records the losses, averaged over the ranks, under the names that SimpleTrainer gives them."""
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        storage.put_scalar("data_time", max(rank["data_time"] for rank in ranks))
        means = {name: sum(rank[name] for rank in ranks) / len(ranks) for name in names}
        storage.put_scalar("total_loss", sum(means.values()))
        if len(means) > 1:
            storage.put_scalars(**means)
