"""Gradient checkpointing: the backward pass computes intermediate results again, which saves memory for time."""

import contextlib
from collections.abc import Callable

from detectron2.modeling import Backbone
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.utils.checkpoint import checkpoint

from clq.errors import UserError


def checkpointed(module: nn.Module, function: Callable, *inputs):
    """Calls ``function(*inputs)`` and keeps nothing but the inputs for its backward pass.

    Outputs and gradients are those of a plain call. So are the running statistics of batch norms, because only the
    first of the two passes updates them.

    Args:
        module: module that holds the layers that the function calls.
        function: function that computes the same each time.
        inputs: its arguments.
    """
    contexts = lambda: (contextlib.nullcontext(), _RunningStatisticsKept(module))  # noqa: E731
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)


class _RunningStatisticsKept:
    """A reusable context in which batch norms do not update their running statistics."""

    def __init__(self, module: nn.Module):
        self.norms = get_bn_modules(module)
        self.momenta = [norm.momentum for norm in self.norms]

    def __enter__(self) -> None:
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *_) -> None:
        for norm, momentum in zip(self.norms, self.momenta, strict=True):
            norm.momentum = momentum


class RecomputedStage(nn.Sequential):
    """A stage of a ResNet, whose intermediate results are computed again in the backward pass."""

    def forward(self, x):
        return checkpointed(self, super().forward, x)


def checkpoint_stages(backbone: Backbone) -> None:
    """Turns each trainable stage of the ResNet of an FPN into a :class:`RecomputedStage`; parameters keep their names.

    Args:
        backbone: FPN on a ResNet.

    Raises:
        UserError: the backbone has no ResNet.
    """
    resnet = getattr(backbone, "bottom_up", None)
    if resnet is None or not hasattr(resnet, "stages"):
        raise UserError("MODEL.CLQ.CHECKPOINT_BACKBONE: the backbone is not an FPN on a ResNet; set it to False.")
    for i, (name, stage) in enumerate(zip(resnet.stage_names, resnet.stages, strict=True)):
        if any(p.requires_grad for p in stage.parameters()):
            resnet.stages[i] = RecomputedStage(*stage)
            resnet.add_module(name, resnet.stages[i])
