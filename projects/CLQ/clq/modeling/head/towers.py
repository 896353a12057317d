"""Towers, from an FPN feature to what the two tasks read: separate, shared, or TOOD's interactive ones."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn
from torch.nn import functional as F

# Names of MODEL.CLQ.ACTIVATION.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.1),
}


class Towers(NamedTuple):
    """The modules of the two sides of a head.

    Attributes:
        shared: module from the feature to the input of both towers.
        cls: class tower, which reads that input, aligned with the box where there is a feature alignment.
        reg: regression tower, which reads that input.
        shared_channels: number of channels of the towers' input.
        out_channels: number of channels of the towers' outputs.
    """

    shared: nn.Module
    cls: nn.Module
    reg: nn.Module
    shared_channels: int
    out_channels: int


@dataclass(frozen=True)
class Layers:
    """How the convolutions of a tower are built.

    Attributes:
        channels: number of channels of each convolution.
        depth: number of convolutions.
        norm: normalization, "GN" or a name that :func:`detectron2.layers.get_norm` knows; "" for none.
        depthwise: whether a 3x3 convolution is a depthwise one followed by a 1x1 convolution.
        activation: function after each normalization.
    """

    channels: int = 256
    depth: int = 4
    norm: str = "GN"
    depthwise: bool = False
    activation: Callable[[Tensor], Tensor] = F.relu

    def __call__(self, in_channels: int) -> nn.Sequential:
        """Builds the convolutions, each with normalization and activation.

        Args:
            in_channels: number of channels of their input.

        Raises:
            ValueError: the norm does not exist, or the channels are no multiple of its groups.
        """
        widths = [in_channels, *[self.channels] * self.depth]
        return nn.Sequential(*(self._layer(before, after) for before, after in itertools.pairwise(widths)))

    def out_channels(self, in_channels: int) -> int:
        """The number of channels of the last convolution, or of the input where there is no convolution."""
        return self.channels if self.depth else in_channels

    def _layer(self, before: int, after: int) -> nn.Module:
        if not self.depthwise:
            return conv_norm_activation(before, after, 3, self.norm, self.activation)
        per_channel = conv_norm_activation(before, before, 3, self.norm, self.activation, groups=before)
        return nn.Sequential(per_channel, conv_norm_activation(before, after, 1, self.norm, self.activation))


def separate_towers(in_channels: int, layers: Layers) -> Towers:
    """Two towers that share nothing but the feature, which has ``in_channels`` channels."""
    return Towers(
        shared=nn.Identity(),
        cls=layers(in_channels),
        reg=layers(in_channels),
        shared_channels=in_channels,
        out_channels=layers.out_channels(in_channels),
    )


def shared_tower(in_channels: int, layers: Layers) -> Towers:
    """One tower, whose output is the output of both sides (NanoDet)."""
    channels = layers.out_channels(in_channels)
    return Towers(
        shared=layers(in_channels),
        cls=nn.Identity(),
        reg=nn.Identity(),
        shared_channels=channels,
        out_channels=channels,
    )


def interactive_towers(in_channels: int, layers: Layers) -> Towers:
    """TOOD's task-interactive features (Feng et al. 2021, eq. 1 to 3): both sides read all layers of one tower.

    Raises:
        ValueError: the tower has no layer.
    """
    if not layers.depth:
        raise ValueError("interactive towers need layers; raise NUM_CONVS")
    cls, reg = (TaskDecomposition(layers.channels, layers.depth, layers.norm, layers.activation) for _ in range(2))
    return Towers(
        shared=AllLayers(*layers(in_channels)),
        cls=cls,
        reg=reg,
        shared_channels=layers.depth * layers.channels,
        out_channels=layers.channels,
    )


class AllLayers(nn.Sequential):
    """A sequence of layers that returns the outputs of all of them, concatenated along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for layer in self:
            outputs.append(x := layer(x))
        return torch.cat(outputs, dim=1)


class TaskDecomposition(nn.Module):
    """One task's share of the interactive features: layers weighted by attention over the image, then reduced.

    Args:
        channels: number of channels of each layer.
        depth: number of layers.
        norm: normalization of the reduction.
        activation: function after the reduction.
    """

    def __init__(self, channels: int, depth: int, norm: str, activation: Callable[[Tensor], Tensor] = F.relu):
        super().__init__()
        hidden = max(channels // 8, 1)
        first, second = small_conv(depth * channels, hidden, 1, 0.001), small_conv(hidden, depth, 1, 0.001)
        self.attention = nn.Sequential(first, nn.ReLU(), second, nn.Sigmoid())
        self.reduce = conv_norm_activation(depth * channels, channels, 1, norm, activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) from all layers' outputs (N, depth * channels, H, W)."""
        attention = self.attention(x.mean(dim=(2, 3), keepdim=True))  # (N, depth, 1, 1)
        # The attention scales the kernel of the reduction, which is small, instead of the features, which are large.
        channels, depth = self.reduce.out_channels, attention.shape[1]
        kernel = self.reduce.weight.view(channels, depth, -1) * attention.view(-1, 1, depth, 1)
        out = (kernel.flatten(2) @ x.flatten(2)).unflatten(2, x.shape[2:])
        if self.reduce.bias is not None:
            out = out + self.reduce.bias.view(-1, 1, 1)
        return self.reduce.activation(out if self.reduce.norm is None else self.reduce.norm(out))


def small_conv(in_channels: int, channels: int, size: int, std: float) -> nn.Conv2d:
    """A convolution with this standard deviation at initialization.

    It is torch's own class, because the head initializes all convolutions of Detectron2's class anew.
    """
    conv = nn.Conv2d(in_channels, channels, size, padding=size // 2)
    nn.init.normal_(conv.weight, std=std)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def conv_norm_activation(
    in_channels: int,
    channels: int,
    size: int,
    norm: str,
    activation: Callable[[Tensor], Tensor] = F.relu,
    groups: int = 1,
) -> Conv2d:
    """A convolution with normalization and activation; it has a bias where there is no normalization."""
    return Conv2d(
        in_channels,
        channels,
        size,
        padding=size // 2,
        groups=groups,
        bias=not norm,
        norm=_norm(norm, channels),
        activation=activation,
    )


class _GroupNorm(nn.GroupNorm):
    """A group norm that accepts one value per group, as a 1x1 level of a narrow head has; torch's module refuses it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class _BatchNorm(nn.BatchNorm2d):
    """A batch norm that uses its running statistics where a batch has one value per channel, which torch refuses."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def _norm(name: str, channels: int) -> nn.Module | None:
    if name == "GN":
        if channels % 32:
            raise ValueError(f"GN has 32 groups, and {channels} channels are no multiple of that")
        return (_GroupNorm if channels == 32 else nn.GroupNorm)(32, channels)  # wider groups have several channels
    if name == "BN":
        return _BatchNorm(channels)
    try:
        return get_norm(name, channels)
    except KeyError:
        raise ValueError(f"{name} is no normalization that detectron2.layers.get_norm knows") from None
