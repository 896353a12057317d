"""A second look at the boxes, after the towers: VFNet's star and TOOD's sampling.

A refinement is a module with these attributes:

* ``coding``: name of the box coding whose predictions it refines;
* ``trains_coarse``: whether the boxes before it have a loss of their own;

called with ``level`` (its index), ``feature`` (N, ., H, W) (the towers' input), ``cls`` and ``reg`` (N, C, H, W) (their
outputs), ``box_pred`` (N, 4, H, W) and ``boxes`` (N, 4, H, W) (what that decodes to, XYXY in stride units relative to
each location), and returning the class feature and the box prediction in the shapes of ``cls`` and ``box_pred``.
"""

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from clq.modeling.head.feature_alignment import FeatureAlignment, StarOffsets
from clq.modeling.head.towers import small_conv


class StarRefinement(nn.Module):
    """VFNet's second stage: both towers' outputs aligned with the box, and a factor on each of its log distances.

    Args:
        channels: of the towers.
        num_levels: each has its own scale of the refinement.
        backend: as of :class:`FeatureAlignment`.
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
        self, level: int, feature: Tensor, cls: Tensor, reg: Tensor, box_pred: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The aligned class feature, and log distances that have no gradient into those before."""
        refinement = self.box_pred(self.reg_align(reg, boxes)).float() * self.scales[level]
        return self.cls_align(cls, boxes), box_pred.detach() + refinement


class SampledBoxes(nn.Module):
    """TOOD's spatial alignment (Feng et al. 2021, eq. 6): each side of a box is read at a learnt place near by.

    A neighbour may see a side better than the location itself does. A box that comes out inside out stays as it was.

    Args:
        in_channels, channels: of the towers' input and output.
    """

    coding = "ltrb"
    trains_coarse = False

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        hidden = max(channels // 4, 1)
        first, second = small_conv(in_channels, hidden, 1, 0.001), small_conv(hidden, 8, 3, 0.001)
        self.offsets = nn.Sequential(first, nn.ReLU(), second)

    def forward(
        self, level: int, feature: Tensor, cls: Tensor, reg: Tensor, box_pred: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The class feature as it is, and the distances of the sampled boxes."""
        height, width = boxes.shape[-2:]
        y = torch.arange(height, device=boxes.device, dtype=boxes.dtype).view(-1, 1).expand(height, width)
        x = torch.arange(width, device=boxes.device, dtype=boxes.dtype).expand(height, width)
        here = torch.stack((x, y, x, y))  # (4, H, W)
        boxes = boxes + here  # relative to the map's origin: neighbours that agree on a side now have equal values
        sampled = sample_each_channel(boxes, self.offsets(feature).float())
        inside_out = (sampled[:, :2] > sampled[:, 2:]).any(dim=1, keepdim=True)
        x1, y1, x2, y2 = (torch.where(inside_out, boxes, sampled) - here).unbind(dim=1)
        return cls, torch.stack((-x1, -y1, x2, y2), dim=1)


def sample_each_channel(x: Tensor, offsets: Tensor) -> Tensor:
    """Each channel of x (N, C, H, W) at its own offsets, bilinear, zero outside the map, differentiable in both.

    Args:
        offsets: (N, 2 C, H, W) in cells, (dy, dx) of each channel.
    """
    n, c, h, w = x.shape
    dy, dx = offsets.reshape(n * c, 2, h, w).unbind(dim=1)
    rows = torch.arange(h, device=x.device, dtype=x.dtype).view(h, 1) + dy
    cols = torch.arange(w, device=x.device, dtype=x.dtype) + dx
    # grid_sample's coordinates with align_corners=False: cell i is at (2i + 1) / size - 1.
    grid = torch.stack(((2 * cols + 1) / w - 1, (2 * rows + 1) / h - 1), dim=-1)
    sampled = F.grid_sample(x.reshape(n * c, 1, h, w), grid, padding_mode="zeros", align_corners=False)
    return sampled.view(n, c, h, w)
