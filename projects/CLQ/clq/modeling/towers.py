"""From an FPN feature to what a head's two tasks read: two separate towers, or TOOD's interactive one."""

from typing import NamedTuple

import torch
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn
from torch.nn import functional as F


class Towers(NamedTuple):
    """What a head's two sides are made of.

    Attributes:
        shared: module from the feature to what both sides read.
        cls, reg: modules from that, or from its alignment with the box, to each side's output.
        shared_channels, out_channels: of these.
    """

    shared: nn.Module
    cls: nn.Module
    reg: nn.Module
    shared_channels: int
    out_channels: int


def separate_towers(in_channels: int, channels: int = 256, depth: int = 4, norm: str = "GN") -> Towers:
    """Two towers of ``depth`` 3x3 convolutions that share nothing but the feature itself.

    Args:
        in_channels: C, of the feature.
        channels: of each convolution.
        depth: number of them on each side.
        norm: "GN" or one of :func:`detectron2.layers.get_norm`'s names.

    Raises:
        ValueError: a norm that does not exist, or that the channels do not divide into.
    """
    cls, reg = (convolutions(in_channels, channels, depth, norm) for _ in range(2))
    return Towers(nn.Identity(), cls, reg, in_channels, channels if depth else in_channels)


def interactive_towers(in_channels: int, channels: int = 256, depth: int = 6, norm: str = "GN") -> Towers:
    """TOOD's task-interactive features (Feng et al. 2021, eq. 1 to 3): one tower, all of whose layers both sides read.

    Args:
        in_channels, channels, depth, norm: as of :func:`separate_towers`.

    Raises:
        ValueError: as :func:`separate_towers`; or no layer.
    """
    if not depth:
        raise ValueError("interactive towers need layers; raise NUM_CONVS")
    shared = AllLayers(*convolutions(in_channels, channels, depth, norm))
    cls, reg = (TaskDecomposition(channels, depth, norm) for _ in range(2))
    return Towers(shared, cls, reg, depth * channels, channels)


class AllLayers(nn.Sequential):
    """A chain of layers that returns the outputs of all of them, joined along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for layer in self:
            outputs.append(x := layer(x))
        return torch.cat(outputs, dim=1)


class TaskDecomposition(nn.Module):
    """One task's share of the interactive features: each layer weighted by attention over the image, then reduced.

    Args:
        channels: of each layer.
        depth: number of layers.
        norm: of the reduction.
    """

    def __init__(self, channels: int, depth: int, norm: str):
        super().__init__()
        hidden = max(channels // 8, 1)
        first, second = small_conv(depth * channels, hidden, 1, 0.001), small_conv(hidden, depth, 1, 0.001)
        self.attention = nn.Sequential(first, nn.ReLU(), second, nn.Sigmoid())
        self.reduce = _conv(depth * channels, channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) from all layers' outputs (N, depth * channels, H, W)."""
        attention = self.attention(x.mean(dim=(2, 3), keepdim=True))  # (N, depth, 1, 1)
        # The attention goes into the reduction's kernel, which is small, not into the features, which are large.
        channels, depth = self.reduce.out_channels, attention.shape[1]
        kernel = self.reduce.weight.view(channels, depth, -1) * attention.view(-1, 1, depth, 1)
        out = (kernel.flatten(2) @ x.flatten(2)).unflatten(2, x.shape[2:])
        if self.reduce.bias is not None:
            out = out + self.reduce.bias.view(-1, 1, 1)
        return F.relu(out if self.reduce.norm is None else self.reduce.norm(out))


def convolutions(in_channels: int, channels: int, depth: int, norm: str) -> nn.Sequential:
    """``depth`` 3x3 convolutions, each with normalisation and ReLU."""
    return nn.Sequential(*(_conv(channels if i else in_channels, channels, 3, norm) for i in range(depth)))


def small_conv(in_channels: int, channels: int, size: int, std: float) -> nn.Conv2d:
    """A convolution of this standard deviation at initialisation; torch's own, as the head resets Detectron2's."""
    conv = nn.Conv2d(in_channels, channels, size, padding=size // 2)
    nn.init.normal_(conv.weight, std=std)
    nn.init.zeros_(conv.bias)
    return conv


def _conv(in_channels: int, channels: int, size: int, norm: str) -> Conv2d:
    return Conv2d(
        in_channels,
        channels,
        size,
        padding=size // 2,
        bias=not norm,
        norm=_norm(norm, channels),
        activation=F.relu,
    )


class _GroupNorm(nn.GroupNorm):
    """torch's, without its refusal of one value per group: a 1x1 level of a narrow head is ordinary input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def _norm(name: str, channels: int) -> nn.Module | None:
    if name == "GN":
        if channels % 32:
            raise ValueError(f"GN has 32 groups, into which {channels} channels do not divide")
        return _GroupNorm(32, channels)
    try:
        return get_norm(name, channels)
    except KeyError:
        raise ValueError(f"{name} is no normalisation that detectron2.layers.get_norm knows") from None
