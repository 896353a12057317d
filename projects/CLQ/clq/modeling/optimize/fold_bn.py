"""Batch norms folded into the convolutions before them: the same function, one pass over the feature maps less."""

import itertools

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_NORMS = FrozenBatchNorm2d, nn.BatchNorm2d


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Folds each batch norm with fixed statistics into its convolution (in place), for inference alone.

    Covers Detectron2's convolutions with a ``norm`` and neighbours in a Sequential, as torchvision has them. Afterwards
    the model neither trains as before nor loads a checkpoint of the unfolded one.

    Raises:
        ValueError: the model is in training mode, where statistics are those of the batch.
    """
    if model.training:
        raise ValueError("only a model in eval mode can be folded; call eval() first")
    for module in list(model.modules()):
        if type(module) is Conv2d and isinstance(module.norm, _NORMS):
            _fold(module, module.norm)
            module.norm = None
        elif isinstance(module, nn.Sequential):
            for (_, conv), (name, norm) in itertools.pairwise(list(module.named_children())):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, _NORMS):
                    _fold(conv, norm)
                    module._modules[name] = nn.Identity()
    return model


def optimize_for_inference(model: nn.Module) -> nn.Module:
    """A detector for inference alone (in place): norms folded, weights in the memory format that convolutions prefer.

    Raises:
        ValueError: see :func:`fold_batch_norms`.
    """
    return fold_batch_norms(model).to(memory_format=torch.channels_last)


def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    """In double precision, so that folding costs one rounding."""
    bias = None if conv.bias is None else conv.bias.double()
    statistics = norm.running_mean.double(), norm.running_var.double(), norm.eps
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(), bias, *statistics, norm.weight.double(), norm.bias.double()
    )
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
