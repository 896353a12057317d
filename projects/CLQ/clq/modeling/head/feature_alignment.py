"""Feature alignment: a 3x3 deformable convolution in front of the class tower, whose taps follow the regressed box.

Boxes are XYXY in stride units relative to their own location: (-4, -4, 4, 4) spans eight cells around it. The offsets
of the taps are a function of the box. Three backends compute the same convolution with the same parameters.
"""

import functools
from abc import ABC, abstractmethod

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import deform_conv2d

# How many numbers are sampled at once on a CPU, where a location has 9 x channels of them. Both values are measured. In
# inference the samples should fit into a core's caches (512 locations of 256 channels); in training, where each part
# costs a gradient of the whole map, larger parts are faster.
_SAMPLES_AT_ONCE, _SAMPLES_AT_ONCE_IN_TRAINING = 512 * 9 * 256, 6_000_000

# Regular positions (dy, dx) of the nine taps, row-major as in a 3x3 kernel: (9, 2).
_TAPS = torch.cartesian_prod(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0]))


class Offsets(nn.Module, ABC):
    """The interface of tap offsets: a module from the box of each location to the offsets of its nine taps.

    Args:
        gradient: share of the gradient that flows back into the boxes, from 0 to 1.
    """

    taps: Tensor

    def __init__(self, gradient: float):
        super().__init__()
        self.gradient = gradient
        # Regular taps (9, 2), as a buffer, so that they are on the model's device.
        self.register_buffer("taps", _TAPS, persistent=False)

    def forward(self, boxes: Tensor) -> Tensor:
        """Offsets of the taps from their regular positions.

        Args:
            boxes: boxes (N, 4, H, W), XYXY in stride units relative to each location.

        Returns:
            Offsets (N, 18 G, H, W) in cells: dy and dx for each of the G offset groups and nine taps (row-major).
        """
        return self._offsets(torch.lerp(boxes.detach(), boxes, self.gradient))

    @abstractmethod
    def _offsets(self, boxes: Tensor) -> Tensor:
        """Offsets as in :meth:`forward`, from boxes whose gradient is already scaled."""


class GeometricOffsets(Offsets):
    """Taps at the centres of the 3x3 equal parts of the box; no parameters, one offset group."""

    def __init__(self, gradient: float = 0.0):
        super().__init__(gradient)

    def _offsets(self, boxes: Tensor) -> Tensor:
        x1, y1, x2, y2 = boxes.unbind(dim=1)
        center = torch.stack(((y1 + y2) / 2, (x1 + x2) / 2), dim=1).unsqueeze(1)  # (N, 1, 2, H, W)
        third = torch.stack(((y2 - y1) / 3, (x2 - x1) / 3), dim=1).unsqueeze(1)
        return (center + self.taps.view(1, 9, 2, 1, 1) * (third - 1)).flatten(1, 2)


class LearnedOffsets(Offsets):
    """A 1x1 convolution from the four sides of the box to the offsets (FoveaBox's feature alignment; CLQ's authors').

    Args:
        groups: number G of offset groups, each of which moves its own G-th part of the channels.
        gradient: share of the gradient that flows back into the boxes; the CLQ authors' code lets all of it through.
        std: standard deviation of the initial weights, in cells per stride; the CLQ authors' code has 0.1.
    """

    def __init__(self, groups: int = 4, gradient: float = 1.0, std: float = 0.1):
        super().__init__(gradient)
        self.conv = nn.Conv2d(4, groups * 18, 1, bias=False)
        nn.init.normal_(self.conv.weight, std=std)

    def _offsets(self, boxes: Tensor) -> Tensor:
        return self.conv(boxes)


class StarOffsets(Offsets):
    """VFNet's star: taps at the location itself, the corners of its box and the sides beside it (section 3.3)."""

    def __init__(self, gradient: float = 0.1):
        super().__init__(gradient)

    def _offsets(self, boxes: Tensor) -> Tensor:
        x1, y1, x2, y2 = boxes.unbind(dim=1)
        zero = torch.zeros_like(x1)
        taps = torch.stack([torch.stack((y, x), dim=1) for y in (y1, zero, y2) for x in (x1, zero, x2)], dim=1)
        return (taps - self.taps.view(1, 9, 2, 1, 1)).flatten(1, 2)


class FeatureAlignment(nn.Module):
    """Deformable 3x3 convolution guided by boxes, then ReLU.

    Args:
        channels: number of channels of input and output, a multiple of the number of offset groups.
        offsets: module from boxes to the offsets of the taps.
        backend: name of the implementation, one of :data:`BACKENDS`, or ``auto``: on the CPU the fastest, which is
            ``gather`` where an offset group has 64 channels or more and ``grid_sample`` where it has fewer; elsewhere
            torchvision's op.

    Raises:
        ValueError: there is no such backend.
    """

    def __init__(self, channels: int, offsets: Offsets, backend: str = "auto"):
        super().__init__()
        if backend != "auto" and backend not in BACKENDS:
            raise ValueError(f"ALIGN.BACKEND is auto, {' or '.join(BACKENDS)}, not {backend}")
        self.backend = backend
        self.offsets = offsets
        self.conv = Conv2d(channels, channels, 3, padding=1, bias=False)  # holds the weight and is never called

    def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
        """Aligns a feature map with boxes.

        Args:
            x: feature map (N, C, H, W).
            boxes: boxes (N, 4, H, W), XYXY in stride units relative to each location.

        Returns:
            (N, C, H, W). Sampling is done in the weight's type, float32, inside autocast as well. The product of
            samples and weight is in autocast's type where the backend supports it.
        """
        weight = self.conv.weight
        with torch.autocast(x.device.type, enabled=False):  # half a cell matters
            offsets = self.offsets(boxes.to(weight.dtype))
        backend = self.backend if self.backend != "auto" else _fastest(x, offsets)
        return F.relu(BACKENDS[backend](x.to(weight.dtype), offsets, weight))


def _fastest(x: Tensor, offsets: Tensor) -> str:
    """Name of the fastest backend. Measured on CPUs: where groups are narrow, ``gather`` reads too many short rows."""
    if x.device.type != "cpu":
        return "torchvision"
    return "gather" if x.shape[1] * 18 // offsets.shape[1] >= 64 else "grid_sample"


def deform_conv2d_torchvision(x: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """:func:`torchvision.ops.deform_conv2d` outside autocast, because not every device has the op in half precision."""
    if x.device.type == "cpu":  # where the op reads outside the map at a NaN, and crashes; so it reads far away instead
        offsets = offsets.nan_to_num(torch.finfo(offsets.dtype).max)
    with torch.autocast(x.device.type, enabled=False):
        return deform_conv2d(x, offsets, weight, padding=1)


def deform_conv2d_grid_sample(x: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Deformable 3x3 convolution (padding 1, no bias) by sampling at the nine taps and one matrix product.

    It computes what :func:`torchvision.ops.deform_conv2d` computes: bilinear, zero outside the map, differentiable in
    all arguments. It is made of operations that every device and exporter has.

    Args:
        x: feature map (N, C, H, W).
        offsets: offsets (N, 18 G, H, W) in cells, dy and dx for each offset group and tap (row-major). Group g moves
            the g-th C / G channels.
        weight: kernel (O, C, 3, 3).

    Returns:
        (N, O, H, W).
    """
    n, c, h, w = x.shape
    groups = offsets.shape[1] // 18
    y, x_pos = _tap_positions(offsets)  # (N, G, 9, H, W)
    # grid_sample's coordinates with align_corners=False: cell i is at (2i + 1) / size - 1.
    grid = torch.stack(((2 * x_pos + 1) / w - 1, (2 * y + 1) / h - 1), dim=-1).view(n * groups, 9 * h, w, 2)
    x = x.reshape(n * groups, c // groups, h, w)
    columns = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (weight.flatten(1) @ columns.view(n, c * 9, h * w)).view(n, -1, h, w)


def deform_conv2d_gather(x: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """:func:`deform_conv2d_grid_sample` in a form that is faster on CPUs.

    Each sample is a weighted sum of four rows of a table. A row holds the channels of one group in one cell, so reading
    it is one contiguous copy. torch's embedding bag sums four rows with their bilinear weights on all cores, and is
    differentiable.
    """
    n, c, h, w = x.shape
    groups = offsets.shape[1] // 18
    y, x_pos = (position.permute(0, 3, 4, 1, 2).contiguous() for position in _tap_positions(offsets))  # (N, H, W, G, 9)
    rows, row_weights = _neighbours(y, h)
    cols, col_weights = _neighbours(x_pos, w)
    # The row of the table is ((image * H + row) * W + column) * G + group. int32 takes half the memory of int64.
    image = torch.arange(0, n * h, h, dtype=torch.int32, device=x.device).view(n, 1, 1, 1, 1, 1)
    group = torch.arange(groups, dtype=torch.int32, device=x.device).view(groups, 1, 1)
    cells = ((image + rows) * (w * groups)).unsqueeze(-1) + (cols * groups + group).unsqueeze(-2)
    bilinear = row_weights.unsqueeze(-1) * col_weights.unsqueeze(-2)  # both (N, H, W, G, 9, 2, 2)
    table = x.permute(0, 2, 3, 1).reshape(-1, c // groups)
    kernel = weight.view(len(weight), groups, -1, 9).permute(1, 3, 2, 0).reshape(9 * c, -1)
    out = _in_parts(table, cells.view(n * h * w, -1, 4), bilinear.view(n * h * w, -1, 4), kernel)
    return out.view(n, h, w, -1).permute(0, 3, 1, 2)


def _in_parts(table: Tensor, cells: Tensor, bilinear: Tensor, kernel: Tensor) -> Tensor:
    """Multiplies samples (P, 9 C) by the kernel (9 C, O), a part of the locations at a time.

    In training with several parts, samples are not kept but taken again in the backward pass. Each part has a gradient
    as large as the table, so parts are larger there. Compiled code has a single part, because the number of parts would
    be a constant of the compiled form, which would then fit few input sizes.

    Args:
        table: rows (N H W G, C / G), one for each cell and offset group.
        cells: indices (P, 9 G, 4) int32 of the four rows for each group and tap of each location.
        bilinear: weights (P, 9 G, 4) of these rows.
        kernel: kernel (9 C, O), with rows by group, tap and channel.
    """
    training = torch.is_grad_enabled()
    at_once = (_SAMPLES_AT_ONCE_IN_TRAINING if training else _SAMPLES_AT_ONCE) // len(kernel)
    if torch.compiler.is_compiling() or len(cells) <= at_once:
        return _sampled_product(table, cells, bilinear, kernel)
    again = functools.partial(checkpoint, _sampled_product, use_reentrant=False, preserve_rng_state=False)
    product = again if training else _sampled_product
    parts = zip(cells.split(at_once), bilinear.split(at_once), strict=True)
    return torch.cat([product(table, *part, kernel) for part in parts])


def _sampled_product(table: Tensor, cells: Tensor, bilinear: Tensor, kernel: Tensor) -> Tensor:
    """(P, O) product of the samples of all P locations and the kernel; arguments as in :func:`_in_parts`."""
    samples = F.embedding_bag(cells.view(-1, 4), table, per_sample_weights=bilinear.view(-1, 4), mode="sum")
    return samples.view(-1, len(kernel)) @ kernel


def _neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Indices and linear weights (..., 2) of the two cells beside each position (...) on a line of ``size`` cells.

    A cell outside the line has weight zero and the index of a cell inside.
    """
    below = position.detach().floor()
    above = position - below  # in [0, 1), with gradient
    cells = torch.stack((below, below + 1), dim=-1)
    weights = torch.stack((1 - above, above), dim=-1) * ((cells >= 0) & (cells < size))
    # Integers are clamped, because a clamped NaN is a NaN, which is no index. Its weights make the loss NaN.
    return cells.int().clamp_(0, size - 1), weights


def _tap_positions(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns (N, G, 9, H, W) of the taps on the map, from offsets (N, 18 G, H, W)."""
    n, channels, h, w = offsets.shape
    taps = offsets.view(n, channels // 18, 9, 2, h, w) + _TAPS.to(offsets, non_blocking=True).view(9, 2, 1, 1)
    rows = torch.arange(h, device=offsets.device, dtype=offsets.dtype).view(h, 1)
    cols = torch.arange(w, device=offsets.device, dtype=offsets.dtype)
    return taps[:, :, :, 0] + rows, taps[:, :, :, 1] + cols


# Names of MODEL.CLQ.ALIGN.BACKEND. All compute the same function of the same parameters.
BACKENDS = {
    "torchvision": deform_conv2d_torchvision,
    "grid_sample": deform_conv2d_grid_sample,
    "gather": deform_conv2d_gather,
}
