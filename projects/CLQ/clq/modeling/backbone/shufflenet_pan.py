"""NanoDet's backbone: ShuffleNetV2 and a pyramid without 3x3 convolutions, for machines without a GPU."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torchvision
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from clq.errors import UserError

_STRIDES = {"stem": 4, "stage2": 8, "stage3": 16, "stage4": 32}
# Names of MODEL.SHUFFLENET.ACTIVATION.
_ACTIVATIONS = {"relu": None, "leaky_relu": partial(nn.LeakyReLU, 0.1, inplace=True)}
# Names of MODEL.SHUFFLENET.NORM.
_NORMS = "BN", "FrozenBN"
SHUFFLENETS = "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"


class ShuffleNetV2(Backbone):
    """torchvision's ShuffleNetV2 (Ma et al. 2018) without its classifier, under its own parameter names.

    Args:
        name: name of the network, one of :data:`SHUFFLENETS`.
        last: name of the coarsest feature; later stages are not built.
        activation: function that makes the module in place of each ReLU, or None for ReLU itself.
        frozen_norms: whether the running statistics and the affine parameters of the batch norms keep the values that
            are loaded, in training too.
    """

    def __init__(
        self,
        name: str,
        last: str = "stage4",
        activation: Callable[[], nn.Module] | None = None,
        frozen_norms: bool = False,
    ):
        super().__init__()
        net = torchvision.models.get_model(name, weights=None)
        if frozen_norms:
            net = FrozenBatchNorm2d.convert_frozen_batchnorm(net)
        if activation is not None:
            for parent in list(net.modules()):
                for key, child in list(parent.named_children()):
                    if isinstance(child, nn.ReLU):
                        setattr(parent, key, activation())
        self.conv1, self.maxpool = net.conv1, net.maxpool
        self._stages = list(_STRIDES)[1 : list(_STRIDES).index(last) + 1]
        channels = {"stem": net.conv1[0].out_channels}
        for stage in self._stages:
            self.add_module(stage, getattr(net, stage))
            channels[stage] = 2 * getattr(net, stage)[-1].branch2[0].in_channels  # which sees half of the channels
        self._shapes = {f: ShapeSpec(channels=c, stride=_STRIDES[f]) for f, c in channels.items()}

    size_divisibility = 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Features of strides 4 to 32 by name, from network inputs (N, 3, H, W)."""
        features = {"stem": self.maxpool(self.conv1(x))}
        x = features["stem"]
        for stage in self._stages:
            x = features[stage] = getattr(self, stage)(x)
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature."""
        return self._shapes


class LitePAN(Backbone):
    """A path-aggregation pyramid that only adds: from the coarsest level down, and up again (NanoDet).

    Each level has one 1x1 convolution to its width. A neighbouring level is resized bilinearly and added.

    Args:
        bottom_up: backbone below the pyramid.
        in_features: names of its features that are used, fine to coarse.
        out_channels: number of channels of each level. Levels are called p2, p3, ... after their strides.
    """

    def __init__(self, bottom_up: Backbone, in_features: list[str], out_channels: int):
        super().__init__()
        self.bottom_up = bottom_up
        self.in_features = in_features
        shapes = [bottom_up.output_shape()[f] for f in in_features]
        laterals = [nn.Conv2d(s.channels, out_channels, 1) for s in shapes]
        for conv in laterals:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(cast(Tensor, conv.bias))
        self.laterals = nn.ModuleList(laterals)
        self._shapes = {
            f"p{s.stride.bit_length() - 1}": ShapeSpec(channels=out_channels, stride=s.stride) for s in shapes
        }

    @property
    def size_divisibility(self) -> int:
        return self.bottom_up.size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Levels (N, out_channels, H / stride, W / stride) by name, from network inputs (N, 3, H, W)."""
        features = self.bottom_up(x)
        levels = [conv(features[f]) for conv, f in zip(self.laterals, self.in_features, strict=True)]
        for fine in reversed(range(len(levels) - 1)):
            levels[fine] = levels[fine] + _resized(levels[fine + 1], levels[fine])
        for coarse in range(1, len(levels)):
            levels[coarse] = levels[coarse] + _resized(levels[coarse - 1], levels[coarse])
        return dict(zip(self._shapes, levels, strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each level."""
        return self._shapes


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


@BACKBONE_REGISTRY.register()
def build_shufflenet_pan_backbone(cfg, input_shape: ShapeSpec) -> LitePAN:
    """Builds ``MODEL.SHUFFLENET.NAME`` with a :class:`LitePAN` on ``MODEL.FPN.IN_FEATURES``.

    All convolutions are trained. With ``MODEL.SHUFFLENET.NORM`` BN the batch norms are trained too, and batches should
    not be small; with FrozenBN the norms keep the values of ``MODEL.WEIGHTS``.

    Raises:
        UserError: there is no such network, norm or feature, the config freezes convolutions, sets a norm or a fusion
            that this pyramid does not have, or uses other levels than the pyramid has.
    """
    name, features = cfg.MODEL.SHUFFLENET.NAME, list(cfg.MODEL.FPN.IN_FEATURES)
    if name not in SHUFFLENETS:
        raise UserError(f"MODEL.SHUFFLENET.NAME {name}: not one of {', '.join(SHUFFLENETS)}.")
    activation = cfg.MODEL.SHUFFLENET.ACTIVATION
    if activation not in _ACTIVATIONS:
        raise UserError(f"MODEL.SHUFFLENET.ACTIVATION {activation}: not one of {', '.join(_ACTIVATIONS)}.")
    if cfg.MODEL.SHUFFLENET.NORM not in _NORMS:
        raise UserError(f"MODEL.SHUFFLENET.NORM {cfg.MODEL.SHUFFLENET.NORM}: not one of {', '.join(_NORMS)}.")
    if cfg.MODEL.BACKBONE.FREEZE_AT:
        raise UserError(
            f"MODEL.BACKBONE.FREEZE_AT {cfg.MODEL.BACKBONE.FREEZE_AT}: all convolutions of a ShuffleNet are trained; "
            "set it to 0."
        )
    if cfg.MODEL.FPN.NORM or cfg.MODEL.FPN.FUSE_TYPE != "sum":
        raise UserError(
            f"MODEL.FPN.NORM {cfg.MODEL.FPN.NORM}, FUSE_TYPE {cfg.MODEL.FPN.FUSE_TYPE}: this pyramid adds, without "
            'norms; set them to "" and sum.'
        )
    if not features or features != [f for f in _STRIDES if f in features]:
        raise UserError(f"MODEL.FPN.IN_FEATURES {features}: name some of {', '.join(_STRIDES)}, in this order.")
    backbone = ShuffleNetV2(name, features[-1], _ACTIVATIONS[activation], cfg.MODEL.SHUFFLENET.NORM == "FrozenBN")
    pan = LitePAN(backbone, features, cfg.MODEL.FPN.OUT_CHANNELS)
    if list(cfg.MODEL.CLQ.IN_FEATURES) != list(pan.output_shape()):
        raise UserError(
            f"MODEL.CLQ.IN_FEATURES {cfg.MODEL.CLQ.IN_FEATURES}: the pyramid of {', '.join(features)} has the levels "
            f"{', '.join(pan.output_shape())}; name all of them, or change MODEL.FPN.IN_FEATURES."
        )
    return pan
