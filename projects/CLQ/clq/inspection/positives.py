"""How many positives ATSS gives to each object of a data set.

Legend: L levels, M objects of one image, T objects of all images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from clq.errors import blamed_on
from clq.inspection.training_images import SizedImage
from clq.modeling.assign.atss import ATSSAssigner
from clq.modeling.build import pyramid_shapes

_BATCH = 16  # images that are matched together; more are slower, because their grids no longer fit into the caches


@dataclass(frozen=True)
class Pyramid:
    """The anchors of a detector.

    Attributes:
        levels: names of the L levels, fine to coarse.
        strides: stride of each level in pixels.
        multiple: number of which the padded height and width of a batch are multiples.
        anchor_scale: side of the square anchors, in strides.
        anchor_offset: shift of their centres, in strides.
        topk: number of candidates that ATSS takes on each level.
    """

    levels: tuple[str, ...]
    strides: tuple[int, ...]
    multiple: int
    anchor_scale: float
    anchor_offset: float
    topk: int

    @property
    def anchors(self) -> list[float]:
        """Side of the anchors of each level in pixels."""
        return [self.anchor_scale * stride for stride in self.strides]

    def grid_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(H, W) of each level for an image of this (height, width)."""
        height, width = (math.ceil(side / self.multiple) * self.multiple for side in size)
        return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in self.strides]

    def num_locations(self, images: Sequence[SizedImage]) -> int:
        """Number of locations on all levels, over all images."""
        return sum(h * w for image in images for h, w in self.grid_sizes(image.size))


def build_pyramid(cfg: CfgNode) -> Pyramid:
    """The pyramid of a config, whose backbone is built without memory for its weights.

    Raises:
        UserError: the backbone cannot be built, or lacks a level.
    """
    with blamed_on("MODEL.BACKBONE, RESNETS, SHUFFLENET and FPN"), torch.device("meta"):
        backbone = build_backbone(cfg)
    c = cfg.MODEL.CLQ
    strides = tuple(shape.stride for shape in pyramid_shapes(backbone, c.IN_FEATURES))
    multiple = max(backbone.size_divisibility, 1)
    return Pyramid(tuple(c.IN_FEATURES), strides, multiple, c.ANCHOR_SCALE, c.ANCHOR_OFFSET, c.TOPK)


def count_positives(pyramid: Pyramid, images: Sequence[SizedImage]) -> np.ndarray:
    """(T,) number of positives of each object, in the order of the images and of their boxes.

    A location that two objects claim counts for the one that gets it.
    """
    assigner = ATSSAssigner(pyramid.topk, pyramid.anchor_scale, pyramid.anchor_offset)
    counts: list[np.ndarray] = [np.empty(0, int)] * len(images)
    order = sorted(range(len(images)), key=lambda i: images[i].size)  # batches of similar shapes have little padding
    for start in range(0, len(images), _BATCH):
        batch = order[start : start + _BATCH]
        grids = torch.tensor([pyramid.grid_sizes(images[i].size) for i in batch])  # (N, L, 2)
        largest = [(h, w) for h, w in grids.amax(dim=0).tolist()]
        boxes = [torch.from_numpy(images[i].boxes).float() for i in batch]
        matched, _ = assigner.match(largest, pyramid.strides, boxes, grids)
        for i, idxs in zip(batch, matched, strict=True):
            counts[i] = torch.bincount(idxs[idxs >= 0], minlength=len(images[i].boxes)).numpy()
    return np.concatenate([np.empty(0, int), *counts])
