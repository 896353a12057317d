"""What a training does when a loss, a gradient or a weight is NaN or infinite: ``SOLVER.ON_NONFINITE``."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterable
from typing import NoReturn

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from clq.checkpoint.finite import find_nonfinite
from clq.config import check_keys
from clq.errors import UserError

logger = logging.getLogger(__name__)

_IMAGES_IN_MESSAGE = 3


class NonFiniteError(UserError):
    """A training has stopped because a loss, a gradient or a weight is not finite. All processes raise it together."""


class NonFinitePolicy:
    """Stops a training at the first step that is not finite, or leaves such steps out.

    Every such step is described in ``nonfinite_ITERATION.json`` in the output folder.

    Args:
        skip: whether such steps are left out.
        max_in_a_row: number of successive steps that may be left out.
        folder: folder of the files.
    """

    def __init__(self, skip: bool = False, max_in_a_row: int = 0, folder: str = "."):
        self.skip = skip
        self.max_in_a_row = max_in_a_row
        self.folder = folder
        self.in_a_row = 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "NonFinitePolicy":
        """The policy of ``SOLVER.ON_NONFINITE`` and ``SOLVER.MAX_NONFINITE_STEPS``.

        Raises:
            UserError: one of these keys does not accept its value.
        """
        check_keys(cfg, "SOLVER.ON_NONFINITE", "SOLVER.MAX_NONFINITE_STEPS")
        return cls(cfg.SOLVER.ON_NONFINITE == "skip", cfg.SOLVER.MAX_NONFINITE_STEPS, cfg.OUTPUT_DIR)

    def leave_out(self, reason: str, report: dict) -> None:
        """Reports a step that has not changed the weights. All ranks call this together.

        Args:
            reason: what is not finite, in words that follow the iteration.
            report: of this rank; see :func:`describe_step`.

        Raises:
            NonFiniteError: the training stops.
        """
        self.in_a_row += 1
        if not self.skip or self.in_a_row > self.max_in_a_row:
            self.stop(reason, report)
        path, images = self._write(reason, report)
        logger.warning("iteration %d: %s; the step is left out. %s has %s.", report["iteration"], reason, path, images)

    def stop(self, reason: str, report: dict, *, together: bool = True) -> NoReturn:
        """Ends the training.

        Args:
            reason: what is not finite, in words that follow the iteration.
            report: of this rank; see :func:`describe_step`.
            together: whether all ranks call this. Otherwise the file describes this rank alone.

        Raises:
            NonFiniteError: always.
        """
        path, images = self._write(reason, report, together=together)
        skipped = self.in_a_row - 1
        if self.skip and skipped > 0:
            reason += f", after {skipped} steps in a row that were left out (SOLVER.MAX_NONFINITE_STEPS)"
        advice = "lower SOLVER.BASE_LR or set SOLVER.CLIP_GRADIENTS.ENABLED True"
        if not self.skip:
            advice += ", or leave such steps out with SOLVER.ON_NONFINITE skip"
        raise NonFiniteError(f"iteration {report['iteration']}: {reason}. {path} has {images}; {advice}.")

    def _write(self, reason: str, report: dict, *, together: bool = True) -> tuple[str, str]:
        """Writes the file, on the main process alone where all ranks call this.

        Returns:
            The path of the file, and what it holds, in words.
        """
        path = os.path.join(self.folder, f"nonfinite_{report['iteration']:07d}.json")
        own = report.pop("rank_report")
        ranks = comm.all_gather(own) if together else [own]
        if comm.is_main_process() or not together:
            try:
                with open(path, "w", encoding="utf-8") as f:
                    json.dump(_without_nonfinite({"reason": reason, **report, "ranks": ranks}), f, indent=1)
            except OSError as e:
                path = f"{path} cannot be written ({e.strerror}); the step"
        bad = [r for r in ranks if not _all_finite(r["losses"].values())] or ranks
        names = [os.path.basename(str(image["file_name"])) for r in bad for image in r["images"]]
        shown = ", ".join(names[:_IMAGES_IN_MESSAGE])
        more = f" and {len(names) - _IMAGES_IN_MESSAGE} more" if len(names) > _IMAGES_IN_MESSAGE else ""
        return path, f"its images ({shown}{more}), boxes, losses and gradients" if names else "its losses and gradients"


class FiniteWeights(HookBase):
    """Stops a training on all ranks before a checkpoint of weights that are not finite would be written.

    Finite gradients can have such weights as their result, which the losses show no earlier than in the next step.

    Args:
        period: number of iterations between checkpoints, as of Detectron2's PeriodicCheckpointer.
        states: named functions that return what is saved, as state_dicts.
    """

    def __init__(self, period: int, **states: Callable[[], dict]):
        self._period = period
        self._states = states

    def add(self, name: str, state: Callable[[], dict]) -> None:
        """Checks one more state; arguments as of the class."""
        self._states[name] = state

    def after_step(self) -> None:
        last = self.trainer.iter + 1 >= self.trainer.max_iter
        if last or (self._period > 0 and (self.trainer.iter + 1) % self._period == 0):
            self.check()

    def check(self) -> None:
        """Checks what a checkpoint would hold now. All ranks call this together.

        Raises:
            NonFiniteError: a tensor is not finite on one of the ranks.
        """
        found = find_nonfinite({name: state() for name, state in self._states.items()})
        names = [name for name in comm.all_gather(found) if name]
        if names:
            reason = f"{names[0]} is not finite after the step; no checkpoint is written"
            self.trainer._trainer.stop_as_nonfinite(reason)


def describe_step(
    iteration: int,
    data: object,
    losses: dict[str, float],
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    *,
    has_gradients: bool,
) -> dict:
    """Describes a step for the file of :class:`NonFinitePolicy`.

    Args:
        iteration: number of the step.
        data: batch of this rank, as from Detectron2's mapper.
        losses: losses of this rank.
        optimizer: optimizer of the model.
        model: model that is trained.
        has_gradients: whether the model's gradients are those of this step.

    Returns:
        The description. ``rank_report`` is what differs between ranks.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    norms = {n: p.grad.norm().item() for n, p in named if p.grad is not None} if has_gradients else {}
    return {
        "iteration": iteration,
        "learning_rates": sorted({group["lr"] for group in optimizer.param_groups}),
        "gradient_norm": math.sqrt(sum(x * x for x in norms.values())),
        "gradient_norms": norms,
        "nonfinite_weights": [n for n, x in model.state_dict().items() if find_nonfinite(x, n)],
        "rank_report": {"rank": comm.get_rank(), "losses": losses, "images": _describe_images(data)},
    }


def _describe_images(data: object) -> list[dict]:
    entries = data if isinstance(data, (list, tuple)) else []
    return [_describe_image(entry) for entry in entries if isinstance(entry, dict)]


def _describe_image(entry: dict) -> dict:
    found = {"file_name": entry.get("file_name", "?"), "image_id": entry.get("image_id")}
    if "mixed_with" in entry:
        found["mixed_with"] = entry["mixed_with"]
    if isinstance(image := entry.get("image"), Tensor):
        found["network_input_shape"] = list(image.shape)
        found["is_finite"] = find_nonfinite(image) is None
    instances = entry.get("instances")
    if instances is not None:
        found["boxes_xyxy"] = instances.gt_boxes.tensor.tolist()
        found["classes"] = instances.gt_classes.tolist()
    return found


def _all_finite(values: Iterable[float]) -> bool:
    return all(map(math.isfinite, values))


def _without_nonfinite(value: object) -> object:
    """Replaces NaN and infinity, which JSON lacks, by text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _without_nonfinite(x) for key, x in value.items()}
    return [_without_nonfinite(x) for x in value] if isinstance(value, (list, tuple)) else value
