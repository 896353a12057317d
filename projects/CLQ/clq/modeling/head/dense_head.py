"""The one head of all variants: two towers, and the branches that a variant asks for."""

import itertools
import math
from collections.abc import Callable, Iterable

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from clq.modeling.box_coding import unit_anchor
from clq.modeling.head.towers import Towers, conv_norm_activation
from clq.modeling.structures import Predictions


class DenseHead(nn.Module):
    """Towers with their output convolutions, the same for all levels; :class:`HeadPerLevel` has one for each level.

    FPN feature -> towers' input -> regression tower -> box prediction (times a learnable scale per level, if any).
    Towers' input -> alignment with the regressed box, if any -> classification tower -> class logits.
    With a refinement, both towers' outputs and the box prediction go through it first. All of it -> quality logit.

    Args:
        towers: both sides up to their outputs, and what they share.
        num_levels: number of levels of the FPN.
        level_scales: whether each level has a learnable scale of the box prediction (NanoDet: no).
        num_classes: K.
        coder: box coder; gives the number of box channels and decodes the boxes that alignment follows.
        anchor_scale: side of the anchors in strides.
        prior_prob: class probability at initialisation.
        quality: module for the quality's logits, see :mod:`clq.modeling.head.quality`; None for no such branch.
        align: module from the towers' input (N, C, H, W) and boxes (N, 4, H, W), XYXY in stride units relative to each
            location, to the classification tower's input; None for the feature itself. How much of the gradient flows
            into the boxes is the alignment's choice.
        refine: see :mod:`clq.modeling.head.refinement`; None for no second look.
        box_norm: the first box prediction has one more convolution after the tower, with this normalisation (VFNet);
            None: it has not.
        activation: function after that convolution.
        pred_size: size of the kernels of the output convolutions.
    """

    def __init__(
        self,
        *,
        towers: Towers,
        num_levels: int,
        num_classes: int,
        coder,
        anchor_scale: float = 8.0,
        level_scales: bool = True,
        prior_prob: float = 0.01,
        quality: nn.Module | None = None,
        align: nn.Module | None = None,
        refine: nn.Module | None = None,
        box_norm: str | None = None,
        activation: Callable[[Tensor], Tensor] = F.relu,
        pred_size: int = 3,
    ):
        super().__init__()
        self.coder = coder
        # A buffer, here and in the offsets of alignments: a constant made in every call would be a copy to the GPU.
        self.register_buffer("anchor", unit_anchor(anchor_scale), persistent=False)
        self.shared, self.cls_tower, self.reg_tower = towers[:3]
        self.align = align
        self.refine = refine
        channels = towers.out_channels
        self.cls_logits = Conv2d(channels, num_classes, pred_size, padding=pred_size // 2)
        self.box_pred = Conv2d(channels, coder.num_channels, pred_size, padding=pred_size // 2)
        if box_norm is not None:
            last = conv_norm_activation(channels, channels, 3, box_norm, activation)
            self.box_pred = nn.Sequential(nn.Sequential(last), self.box_pred)
        self.quality_pred = quality
        self.scales = nn.Parameter(torch.ones(num_levels)) if level_scales else None
        for module in self.modules():
            if isinstance(module, Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(self, features: list[Tensor]) -> Predictions:
        """Lists over levels: class logits (N, K, H, W), box predictions (N, C, H, W), quality logits (N, 1, H, W)."""
        out = Predictions([], [], [], [])
        for level, feature in enumerate(features):
            feature = self.shared(feature)
            reg = self.reg_tower(feature)
            # Boxes are float32 from here on, as the losses on them: half a pixel matters.
            box_pred = self.coder.activate(self.box_pred(reg).float())
            if self.scales is not None:
                box_pred = box_pred * self.scales[level]
            aligned = feature if self.align is None else self.align(feature, self._relative_boxes(box_pred))
            cls = self.cls_tower(aligned)
            if self.refine is not None:
                if self.refine.trains_coarse:
                    out.coarse_box_pred.append(box_pred)
                cls, box_pred = self.refine(level, feature, cls, reg, box_pred, self._relative_boxes(box_pred))
            out.cls_logits.append(self.cls_logits(cls))
            out.box_pred.append(box_pred)
            if self.quality_pred is not None:
                out.quality_logits.append(self.quality_pred(feature, cls, reg, box_pred))
        return out

    def _relative_boxes(self, box_pred: Tensor) -> Tensor:
        """(N, 4, H, W) XYXY boxes in stride units relative to their locations, from box predictions (N, C, H, W)."""
        return self.coder.decode(box_pred.permute(0, 2, 3, 1), self.anchor, 1.0).permute(0, 3, 1, 2)


class HeadPerLevel(nn.Module):
    """A head for each level, which share nothing (NanoDet).

    Args:
        heads: heads of one level each, fine to coarse.
    """

    def __init__(self, heads: Iterable[DenseHead]):
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, features: list[Tensor]) -> Predictions:
        """As :meth:`DenseHead.forward`."""
        levels = [head([feature]) for head, feature in zip(self.heads, features, strict=True)]
        return Predictions(*(list(itertools.chain(*field)) for field in zip(*levels, strict=True)))
