"""The one head of all detectors: two towers, and the branches that a variant asks for."""

import itertools
import math
from collections.abc import Callable, Iterable

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from clq.modeling.box_coding import BoxCoder, unit_anchor
from clq.modeling.head.feature_alignment import FeatureAlignment
from clq.modeling.head.quality import QualityBranch
from clq.modeling.head.refinement import Refinement
from clq.modeling.head.towers import Towers, conv_norm_activation
from clq.modeling.structures import Predictions


class DenseHead(nn.Module):
    """Towers with their output convolutions, shared by all levels; :class:`HeadPerLevel` has one head for each level.

    The FPN feature becomes the towers' input. The regression tower gives the box prediction, which is multiplied by a
    learnable scale of the level. The towers' input, aligned with the regressed box where there is a feature alignment,
    goes through the class tower and gives the class logits. A refinement, where there is one, changes the outputs of
    the class tower and the box prediction before that. The quality branch comes last and may read any of these maps.

    Args:
        towers: modules of both sides up to their outputs, and what they share.
        num_levels: number L of FPN levels.
        num_classes: number K of classes.
        coder: box coder, which sets the number of box channels and decodes the boxes that the alignment follows.
        anchor_scale: side of the anchors, in strides.
        level_scales: whether each level has a learnable scale of the box prediction (NanoDet has none).
        prior_prob: class probability at initialization.
        quality: quality branch, or None.
        align: feature alignment in front of the class tower, or None. It chooses how much of its gradient flows into
            the boxes.
        refine: refinement of the towers' outputs and of the box prediction, or None.
        box_norm: normalization of one more convolution between the regression tower and the box prediction (VFNet), or
            None for no such convolution.
        activation: function after that convolution.
        pred_size: size of the kernels of the output convolutions.
    """

    anchor: Tensor

    def __init__(
        self,
        *,
        towers: Towers,
        num_levels: int,
        num_classes: int,
        coder: BoxCoder,
        anchor_scale: float = 8.0,
        level_scales: bool = True,
        prior_prob: float = 0.01,
        quality: QualityBranch | None = None,
        align: FeatureAlignment | None = None,
        refine: Refinement | None = None,
        box_norm: str | None = None,
        activation: Callable[[Tensor], Tensor] = F.relu,
        pred_size: int = 3,
    ):
        super().__init__()
        self.coder = coder
        # A buffer, here and in the offsets of alignments: a constant made in each call would be copied to the GPU.
        self.register_buffer("anchor", unit_anchor(anchor_scale), persistent=False)
        self.shared, self.cls_tower, self.reg_tower = towers.shared, towers.cls, towers.reg
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
        """Raw outputs of all levels, from FPN features (N, C, H, W), fine to coarse."""
        out = Predictions([], [], [], [])
        for level, feature in enumerate(features):
            feature = self.shared(feature)
            reg = self.reg_tower(feature)
            # Boxes are float32 from here on, like the losses on them, because half a pixel matters.
            box_pred = self.coder.activate(self.box_pred(reg).float())
            if self.scales is not None:
                box_pred = box_pred * self.scales[level]
            aligned = feature if self.align is None else self.align(feature, self._relative_boxes(box_pred))
            cls = self.cls_tower(aligned)
            if self.refine is not None:
                if self.refine.trains_coarse:
                    out.coarse_box_pred.append(box_pred)
                cls, box_pred = self.refine(
                    level=level,
                    feature=feature,
                    cls=cls,
                    reg=reg,
                    box_pred=box_pred,
                    boxes=self._relative_boxes(box_pred),
                )
            out.cls_logits.append(self.cls_logits(cls))
            out.box_pred.append(box_pred)
            if self.quality_pred is not None:
                maps = {"feature": feature, "cls": cls, "reg": reg, "box_pred": box_pred}
                out.quality_logits.append(self.quality_pred(maps[self.quality_pred.reads]))
        return out

    def _relative_boxes(self, box_pred: Tensor) -> Tensor:
        """Boxes (N, 4, H, W), XYXY in stride units relative to their locations, from box predictions (N, C, H, W)."""
        return self.coder.decode(box_pred.permute(0, 2, 3, 1), self.anchor, 1.0).permute(0, 3, 1, 2)


class HeadPerLevel(nn.Module):
    """One head for each level; the heads share nothing (NanoDet).

    Args:
        heads: heads for one level each, fine to coarse.
    """

    def __init__(self, heads: Iterable[DenseHead]):
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, features: list[Tensor]) -> Predictions:
        """Raw outputs of all levels, see :meth:`DenseHead.forward`."""
        levels = [head([feature]) for head, feature in zip(self.heads, features, strict=True)]
        return Predictions(*(list(itertools.chain(*field)) for field in zip(*levels, strict=True)))
