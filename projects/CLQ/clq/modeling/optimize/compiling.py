"""The network of a detector compiled by torch."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clq.modeling.structures import Predictions

Network = Callable[[Any, Tensor], Predictions]


def call_compiled(network: Network, model: nn.Module, images: Tensor) -> Predictions:
    """Calls a compiled network, with CUDA graphs where they pay.

    Args:
        network: function from a model and its images to raw outputs. It is compiled at its first call. Because the
            model is an argument, weights keep their names and copies of a model run their own weights.
        model: the detector.
        images: network inputs (N, 3, H, W).
    """
    # CUDA graphs save the launches of single kernels, which matter in inference with one image at a time.
    if not images.is_cuda or model.training:
        return _compiled(network, "default")(model, images)
    torch.compiler.cudagraph_mark_step_begin()
    predictions = _compiled(network, "reduce-overhead")(model, images)
    # The outputs lie in the graph's own memory, which the next call overwrites.
    return Predictions(*([x.clone() for x in levels] for levels in predictions))


@functools.cache
def _compiled(network: Network, mode: str) -> Network:
    return torch.compile(network, mode=mode)
