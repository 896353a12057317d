"""Adaptive Training Sample Selection (Zhang et al. 2020) without the R x M matrices of its textbook form.

Anchors lie on grids. The k cells of a level nearest to a point are found from the point alone: sort the columns and the
rows by distance; the cell in the i-th nearest column and the j-th nearest row has i * j - 1 others at least as near, so
only cells with i * j <= k can be among the k nearest. For k = 9 that leaves 23 of them, whatever the level's size,
wherever the point lies. Cost and memory are O(M L k) for M ground truths on L levels, for a whole batch at once.

Legend: N images, L levels, R locations over all levels, T ground truths over all images, k = topk, C candidates.
"""

import itertools
from collections.abc import Sequence

import torch
from detectron2.structures.boxes import Boxes, matched_pairwise_iou
from torch import Tensor

_INFINITELY_FAR = 0x7F800000 << 32  # the bits of float32's infinity, in the high half of a key
_INSIDE_MARGIN = 0.01  # pixels


def match_atss(
    grid_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    gt_boxes: Tensor,
    *,
    topk: int = 9,
    anchor_scale: float = 8.0,
    center_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Matches the anchors of one image to its ground truths.

    For each ground truth, the ``min(topk, cells)`` anchors of each level whose centres are nearest (L2; ties go to the
    lower index) are candidates. It takes those with IoU >= mean + unbiased standard deviation over all its candidates
    whose centre lies inside it by more than 0.01 pixels on every side. An anchor taken twice goes to the ground truth
    with the higher IoU (ties: the lower index).

    Args:
        grid_sizes: (H, W) of each level.
        strides: of each level, in pixels.
        gt_boxes: (M, 4) XYXY in pixels of the network's input; M may be 0, then also as an empty (0,).
        topk: k, candidates per level.
        anchor_scale: side of the square anchors, in strides.
        center_offset: anchors are centred on ((x + offset) * stride, (y + offset) * stride).

    Returns:
        ``matched_idxs`` (R,) int64, the matched ground truth or -1, and ``matched_ious`` (R,) float32, the IoU of
        anchor and match, 0 where there is none.
    """
    matcher = ATSSMatcher(topk=topk, anchor_scale=anchor_scale, center_offset=center_offset)
    matched_idxs, matched_ious = matcher(grid_sizes, strides, [gt_boxes.reshape(-1, 4)])
    return matched_idxs[0], matched_ious[0]


class ATSSMatcher:
    """:func:`match_atss` for a batch of images.

    Args:
        topk, anchor_scale, center_offset: see :func:`match_atss`.
    """

    def __init__(self, topk: int = 9, anchor_scale: float = 8.0, center_offset: float = 0.0):
        self.topk = topk
        self.anchor_scale = anchor_scale
        self.center_offset = center_offset
        order = torch.arange(topk, device="cpu")  # where a model is built on the meta device too
        ranks = torch.cartesian_prod(order, order)
        # (2, C): rank of the column and of the row, from 0, of the cells that can be among the k nearest.
        self.candidate_ranks = ranks[(ranks + 1).prod(dim=1) <= topk].T

    @torch.no_grad()
    def __call__(
        self,
        grid_sizes: Sequence[tuple[int, int]],
        strides: Sequence[int],
        gt_boxes: Sequence[Tensor],
        valid_sizes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Matches every image of a batch.

        Args:
            grid_sizes, strides: as :func:`match_atss`, the same for all images.
            gt_boxes: per image (M, 4) XYXY pixels.
            valid_sizes: (N, L, 2) int64, the (H, W) of each level that each image really covers: the rest is padding
                and is never matched. None: the whole grids.

        Returns:
            ``matched_idxs`` (N, R) int64 and ``matched_ious`` (N, R) float32.
        """
        device = gt_boxes[0].device
        counts = [len(b) for b in gt_boxes]
        image = torch.arange(len(gt_boxes)).repeat_interleave(torch.tensor(counts), output_size=sum(counts))
        image = to_device_async(image, device)  # (T,)
        boxes = torch.cat(list(gt_boxes)).float()  # (T, 4)
        sizes = torch.tensor(list(map(tuple, grid_sizes)))  # (L, 2)
        starts = list(itertools.accumulate((h * w for h, w in grid_sizes), initial=0))
        num_locations = starts.pop()
        start = to_device_async(torch.tensor(starts), device)
        widths = to_device_async(sizes[:, 1], device)
        level_strides = to_device_async(torch.tensor(strides, dtype=torch.float32), device)
        valid_sizes = sizes.expand(len(gt_boxes), -1, -1) if valid_sizes is None else valid_sizes

        valid_sizes = to_device_async(valid_sizes, device)[image]  # (T, L, 2)
        cells = self._nearest_cells(boxes, valid_sizes, widths, level_strides)  # (T, L, k)
        ious, positive = self._select(boxes, cells, widths, level_strides)  # (T, L, k) each
        locations = (image * num_locations)[:, None, None] + start[:, None] + cells.clamp(min=0)
        best = self._resolve(locations, ious, positive, len(gt_boxes) * num_locations)
        return _unpack(best.view(len(gt_boxes), num_locations), to_device_async(start_offsets(counts), device))

    def max_positives(self, num_gts: int, num_levels: int) -> int:
        """A bound, known on the host, on the locations that ``num_gts`` ground truths take."""
        return num_gts * num_levels * self.topk

    def _nearest_cells(self, boxes: Tensor, valid_sizes: Tensor, widths: Tensor, strides: Tensor) -> Tensor:
        """(T, L, k) index within its level of the k cells nearest to each box's centre; -1 where a level has fewer."""
        center = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2  # (T, 1, 2) xy
        available = valid_sizes.flip(-1).int()  # (T, L, 2) columns, rows; 32 bits: half the memory to go through
        index = _nearest_on_line(center / strides[:, None] - self.center_offset, available, self.topk)  # (T, L, 2, k)
        offset = (index + self.center_offset) * strides[:, None, None] - center[..., None]
        exists = torch.arange(self.topk, device=boxes.device) < available[..., None]
        squared = offset.square().where(exists, torch.inf)
        index = index.clamp(min=0)  # where nothing exists it may be negative, and would spoil the key
        widths = widths.int()
        columns, rows = to_device_async(self.candidate_ranks, boxes.device)
        distance = squared[..., 0, :].index_select(-1, columns) + squared[..., 1, :].index_select(-1, rows)  # (T, L, C)
        cell = (index[..., 1, :] * widths[:, None]).index_select(-1, rows) + index[..., 0, :].index_select(-1, columns)
        # One integer orders by distance first and by index second: the bits of a float >= 0 sort as the float does, and
        # of two halves side by side in memory the second is the high one (all devices of torch are little-endian).
        key = torch.stack((cell, distance.view(torch.int32)), dim=-1).view(torch.int64).squeeze(-1)
        key = key.topk(self.topk, dim=-1, largest=False, sorted=False).values
        return torch.where(key >= _INFINITELY_FAR, -1, key & 0xFFFFFFFF)

    def _select(self, boxes: Tensor, cells: Tensor, widths: Tensor, strides: Tensor) -> tuple[Tensor, Tensor]:
        """IoU (T, L, k) of the candidates with their ground truth, and which of them it takes (T, L, k)."""
        grid = torch.stack((cells % widths[:, None], cells // widths[:, None]), dim=-1)  # (T, L, k, 2) xy
        center = (grid + self.center_offset) * strides[:, None, None]
        half = (strides * self.anchor_scale / 2)[:, None, None]
        anchors = torch.cat((center - half, center + half), dim=-1)
        gt = boxes[:, None, None]  # (T, 1, 1, 4)
        ious = matched_pairwise_iou(Boxes(anchors.view(-1, 4)), Boxes(gt.expand_as(anchors).reshape(-1, 4)))
        ious = ious.view(cells.shape)

        exists = cells >= 0
        count = exists.sum(dim=(1, 2), keepdim=True)
        mean = (ious * exists).sum(dim=(1, 2), keepdim=True) / count
        variance = ((ious - mean).square() * exists).sum(dim=(1, 2), keepdim=True) / (count - 1).clamp(min=1)
        inside = torch.cat((center - gt[..., :2], gt[..., 2:] - center), dim=-1).amin(dim=-1) > _INSIDE_MARGIN
        return ious, exists & inside & (ious >= mean + variance.sqrt())

    @staticmethod
    def _resolve(locations: Tensor, ious: Tensor, positive: Tensor, num_locations: int) -> Tensor:
        """(num_locations,) the winner of each location, as an integer that orders by IoU, then by lower ground truth.

        The high half holds the IoU's bits, the low half the complement of the ground truth's index among the T; -1
        where nobody claims the location.
        """
        rank = 0xFFFFFFFF - torch.arange(len(ious), device=ious.device)[:, None, None]
        claim = torch.where(positive, (ious.view(torch.int32).long() << 32) | rank, -1)
        best = claim.new_full((num_locations,), -1)
        return best.scatter_reduce_(0, locations.flatten(), claim.flatten(), "amax")


def to_device_async(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, without waiting for what was queued there before."""
    return tensor.to(device, non_blocking=True)


def start_offsets(counts: Sequence[int]) -> Tensor:
    """(N,) int64: where each image's ground truths begin among those of all, from how many each has."""
    return torch.tensor([0, *itertools.accumulate(counts)][:-1])


def _nearest_on_line(position: Tensor, available: Tensor, k: int) -> Tensor:
    """The k integers of [0, available) nearest to each position, nearest first, ties to the lower.

    They alternate around the nearest one, and run on along one side where the other ends.

    Args:
        position: (...) real.
        available: (...) int32, at least 1. Where it is below k, only the first ``available`` entries mean anything.

    Returns:
        (..., k) int32.
    """
    nearest = torch.ceil(position - 0.5).int().clamp(min=0).minimum(available - 1)
    forward = position > nearest  # the second nearest lies above
    below, above = nearest, available - 1 - nearest
    near_side, far_side = torch.where(forward, above, below)[..., None], torch.where(forward, below, above)[..., None]
    rank = torch.arange(k, dtype=torch.int32, device=position.device)
    alternating = torch.where(rank % 2 == 1, (rank + 1) // 2, -(rank // 2))
    steps = torch.where(
        far_side < rank // 2,
        rank - far_side,
        torch.where(near_side < (rank + 1) // 2, near_side - rank, alternating),
    )
    return nearest[..., None] + torch.where(forward[..., None], steps, -steps)


def _unpack(best: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Matched index within each image and IoU (N, R) from :meth:`ATSSMatcher._resolve`'s integers."""
    matched = best >= 0
    index = 0xFFFFFFFF - (best & 0xFFFFFFFF) - first[:, None]
    ious = (best >> 32).int().view(torch.float32)
    return torch.where(matched, index, -1), torch.where(matched, ious, 0.0)
