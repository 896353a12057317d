"""A second look at the boxes, after the towers: VFNet's star-shaped refinement and TOOD's sampling."""

from abc import ABC, abstractmethod

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from clq.modeling.head.feature_alignment import FeatureAlignment, StarOffsets
from clq.modeling.head.towers import small_conv


class Refinement(nn.Module, ABC):
    """The interface of refinements.

    Attributes:
        coding: name of the box coding whose predictions it refines.
        trains_coarse: whether the boxes before the refinement have a loss of their own.
    """

    coding: str
    trains_coarse: bool

    @abstractmethod
    def forward(
        self, *, level: int, feature: Tensor, cls: Tensor, reg: Tensor, box_pred: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Refines one level.

        Args:
            level: index of the level.
            feature: input of the towers (N, C_in, H, W).
            cls: output of the class tower (N, C, H, W).
            reg: output of the regression tower (N, C, H, W).
            box_pred: box prediction (N, 4, H, W).
            boxes: boxes (N, 4, H, W) decoded from it, XYXY in stride units relative to each location.

        Returns:
            What takes the place of ``cls`` and of ``box_pred``, in the same shapes.
        """


class StarRefinement(Refinement):
    """VFNet's second stage: both towers' outputs are aligned with the box, whose log distances get a correction.

    Args:
        channels: number of channels of the towers.
        num_levels: number of levels; each has its own scale of the correction.
        backend: name of the implementation, see :class:`FeatureAlignment`.
    """

    coding = "distance"
    trains_coarse = True

    def __init__(self, channels: int, num_levels: int, backend: str = "auto"):
        super().__init__()
        self.cls_align = FeatureAlignment(channels, StarOffsets(), backend)
        self.reg_align = FeatureAlignment(channels, StarOffsets(), backend)
        self.box_pred = Conv2d(channels, 4, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(num_levels))

    def forward(
        self, *, level: int, feature: Tensor, cls: Tensor, reg: Tensor, box_pred: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the aligned class feature, and log distances without gradient into the first ones."""
        refinement = self.box_pred(self.reg_align(reg, boxes)).float() * self.scales[level]
        return self.cls_align(cls, boxes), box_pred.detach() + refinement


class SampledBoxes(Refinement):
    """TOOD's spatial alignment (Feng et al. 2021, eq. 6): each side of a box is read at a learned nearby position.

    A neighbour may see a side better than the location itself does. A box whose sides would cross stays as it was.

    Args:
        in_channels: number of channels of the towers' input.
        channels: number of channels of the towers' output; a quarter of it is the width of the branch.
    """

    coding = "ltrb"
    trains_coarse = False

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        hidden = max(channels // 4, 1)
        first, second = small_conv(in_channels, hidden, 1, 0.001), small_conv(hidden, 8, 3, 0.001)
        self.offsets = nn.Sequential(first, nn.ReLU(), second)

    def forward(
        self, *, level: int, feature: Tensor, cls: Tensor, reg: Tensor, box_pred: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the class feature unchanged, and the distances of the sampled boxes."""
        height, width = boxes.shape[-2:]
        y = torch.arange(height, device=boxes.device, dtype=boxes.dtype).view(-1, 1).expand(height, width)
        x = torch.arange(width, device=boxes.device, dtype=boxes.dtype).expand(height, width)
        here = torch.stack((x, y, x, y))  # (4, H, W)
        boxes = boxes + here  # relative to the map's origin, where neighbours that agree on a side have equal values
        sampled = sample_each_channel(boxes, self.offsets(feature).float())
        crossed = (sampled[:, :2] > sampled[:, 2:]).any(dim=1, keepdim=True)
        x1, y1, x2, y2 = (torch.where(crossed, boxes, sampled) - here).unbind(dim=1)
        return cls, torch.stack((-x1, -y1, x2, y2), dim=1)


def sample_each_channel(x: Tensor, offsets: Tensor) -> Tensor:
    """Samples each channel at its own offsets, bilinearly, with zero outside the map; differentiable in both.

    Args:
        x: map (N, C, H, W).
        offsets: offsets (N, 2 C, H, W) in cells, (dy, dx) for each channel.

    Returns:
        (N, C, H, W).
    """
    n, c, h, w = x.shape
    dy, dx = offsets.reshape(n * c, 2, h, w).unbind(dim=1)
    rows = torch.arange(h, device=x.device, dtype=x.dtype).view(h, 1) + dy
    cols = torch.arange(w, device=x.device, dtype=x.dtype) + dx
    # grid_sample's coordinates with align_corners=False: cell i is at (2i + 1) / size - 1.
    grid = torch.stack(((2 * cols + 1) / w - 1, (2 * rows + 1) / h - 1), dim=-1)
    sampled = F.grid_sample(x.reshape(n * c, 1, h, w), grid, padding_mode="zeros", align_corners=False)
    return sampled.view(n, c, h, w)
