"""Less memory for more time: what a forward pass leaves behind for the backward pass is computed again there."""

import contextlib
from collections.abc import Callable

from detectron2.modeling import Backbone
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.utils.checkpoint import checkpoint

from clq.errors import UserError


def checkpointed(module: nn.Module, function: Callable, *inputs):
    """``function(*inputs)``, keeping nothing for its backward pass but the inputs.

    Outputs and gradients are those of a plain call, and so are running statistics of batch normalisation, which only
    the first of the two passes moves.

    Args:
        module: holds the layers that the function calls.
        function, inputs: any; computes the same each time.
    """
    contexts = lambda: (contextlib.nullcontext(), _RunningStatisticsKept(module))  # noqa: E731
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)


class _RunningStatisticsKept:
    """A context, as often as it is needed, in which batch norms do not move their running statistics."""

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
    """A stage of a ResNet whose intermediate results are computed again in the backward pass."""

    def forward(self, x):
        return checkpointed(self, super().forward, x)


def checkpoint_stages(backbone: Backbone) -> None:
    """Makes each stage that learns, of the ResNet below an FPN, a :class:`RecomputedStage`; names stay as they are.

    Raises:
        UserError: there is no ResNet.
    """
    body = getattr(backbone, "bottom_up", None)
    if not hasattr(body, "stages"):
        raise UserError("MODEL.CLQ.CHECKPOINT_BACKBONE: the backbone is no FPN on a ResNet; set it to False.")
    for i, (name, stage) in enumerate(zip(body.stage_names, body.stages, strict=True)):
        if any(p.requires_grad for p in stage.parameters()):
            body.stages[i] = RecomputedStage(*stage)
            body.add_module(name, body.stages[i])
