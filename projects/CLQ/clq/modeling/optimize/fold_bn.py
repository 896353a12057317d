"""Batch norms folded into the convolutions before them, which saves a pass over the feature maps."""

import itertools

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_NORMS = FrozenBatchNorm2d, nn.BatchNorm2d


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Folds each batch norm with fixed statistics into its convolution, in place, for inference only.

    It covers Detectron2's convolutions with a ``norm`` and a convolution followed by a norm in a Sequential, as
    torchvision has them. Afterwards the model neither trains as before nor loads a checkpoint of the original model.

    Args:
        model: any module.

    Raises:
        ValueError: the model is in training mode, in which statistics are those of the batch.
    """
    if model.training:
        raise ValueError("only a model in eval mode can be folded; call eval() first")
    for module in list(model.modules()):
        norm = getattr(module, "norm", None)
        if isinstance(module, Conv2d) and type(module) is Conv2d and isinstance(norm, _NORMS):
            _fold(module, norm)
            module.norm = None  # type: ignore[assignment]  # torch's annotation of attributes leaves None out
        elif isinstance(module, nn.Sequential):
            for (_, conv), (name, after) in itertools.pairwise(list(module.named_children())):
                if isinstance(conv, nn.Conv2d) and isinstance(after, _NORMS):
                    _fold(conv, after)
                    module._modules[name] = nn.Identity()
    return model


def optimize_for_inference(model: nn.Module) -> nn.Module:
    """Prepares a detector for inference only, in place: folds its norms and stores its weights channels-last.

    Args:
        model: detector in eval mode.

    Raises:
        ValueError: see :func:`fold_batch_norms`.
    """
    return fold_batch_norms(model).to(memory_format=torch.channels_last)


def _fold(conv: nn.Conv2d, norm: FrozenBatchNorm2d | nn.BatchNorm2d) -> None:
    """Folds in double precision, so that folding costs a single rounding."""
    assert norm.running_mean is not None and norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        conv_w=conv.weight.double(),
        conv_b=None if conv.bias is None else conv.bias.double(),
        bn_rm=norm.running_mean.double(),
        bn_rv=norm.running_var.double(),
        bn_eps=norm.eps,
        bn_w=norm.weight.double(),
        bn_b=norm.bias.double(),
    )
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
