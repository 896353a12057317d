"""Adaptive Training Sample Selection (Zhang et al. 2020) without the R x M matrices of its textbook form.

Anchors lie on grids, so the k cells of a level that are nearest to a point follow from the point alone. Sort the
columns and the rows by their distance. The cell in the i-th nearest column and the j-th nearest row has i * j - 1 other
cells that are at least as near, so only cells with i * j <= k can be among the k nearest. For k = 9 these are 23 cells,
however large the level is and wherever the point lies. Time and memory are O(M L k) for M ground truths on L levels,
and a whole batch is assigned at once.

Legend: N images, L levels, R locations over all levels, T ground truths over all images, k = topk, C candidates.
"""

import itertools
from collections.abc import Sequence

import torch
from detectron2.structures.boxes import Boxes, matched_pairwise_iou
from torch import Tensor

from clq.modeling.assign.base import Assignment, AssignmentInputs

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

    The candidates of a ground truth are, on each level, the ``min(topk, cells)`` anchors whose centres are nearest to
    its own (L2 distance; of equal distances the lower index is nearer). It takes the candidates whose IoU is at least
    the mean plus the unbiased standard deviation over all its candidates, and whose centre lies inside it by more than
    0.01 pixels on every side. An anchor that two ground truths take goes to the one with the higher IoU, or to the one
    with the lower index where the IoUs are equal.

    Args:
        grid_sizes: (H, W) of each level.
        strides: stride of each level, in pixels.
        gt_boxes: (M, 4) ground-truth boxes, XYXY in pixels of the network's input. M may be 0; an empty tensor (0,) is
            accepted as well.
        topk: number k of candidates on each level.
        anchor_scale: side of the square anchors, in strides.
        center_offset: shift of the anchors' centres, which lie at ((x + offset) * stride, (y + offset) * stride).

    Returns:
        ``matched_idxs`` (R,) int64, the index of the matched ground truth or -1, and ``matched_ious`` (R,) float32,
        the IoU of the anchor with it, or 0 where there is none.
    """
    assigner = ATSSAssigner(topk=topk, anchor_scale=anchor_scale, center_offset=center_offset)
    matched_idxs, matched_ious = assigner.match(grid_sizes, strides, [gt_boxes.reshape(-1, 4)])
    return matched_idxs[0], matched_ious[0]


class ATSSAssigner:
    """The assigner of ATSS: :func:`match_atss` for a batch of images.

    Args:
        topk: number k of candidates on each level.
        anchor_scale: side of the square anchors, in strides.
        center_offset: shift of the anchors' centres, in strides.
    """

    def __init__(self, topk: int = 9, anchor_scale: float = 8.0, center_offset: float = 0.0):
        self.topk = topk
        self.anchor_scale = anchor_scale
        self.center_offset = center_offset
        order = torch.arange(topk, device="cpu")  # where a model is built on the meta device too
        ranks = torch.cartesian_prod(order, order)
        # (2, C): rank of the column and of the row, from 0, of the cells that can be among the k nearest.
        self.candidate_ranks = ranks[(ranks + 1).prod(dim=1) <= topk].T

    def __call__(self, inputs: AssignmentInputs) -> Assignment:
        """Assigns a batch by its anchors and ground truths alone. A ground truth takes at most k anchors of a level."""
        matched_idxs, _ = self.match(inputs.grid_sizes, inputs.strides, inputs.gt_boxes, inputs.valid_sizes)
        num_gts = sum(map(len, inputs.gt_boxes))
        return Assignment(matched_idxs, max_positives=num_gts * len(inputs.grid_sizes) * self.topk)

    @torch.no_grad()
    def match(
        self,
        grid_sizes: Sequence[tuple[int, int]],
        strides: Sequence[int],
        gt_boxes: Sequence[Tensor],
        valid_sizes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Matches every image of a batch.

        Args:
            grid_sizes: (H, W) of each level, the same for all images.
            strides: stride of each level, in pixels.
            gt_boxes: for each image its ground-truth boxes (M, 4), XYXY in pixels.
            valid_sizes: (N, L, 2) int64, the (H, W) of each level that an image covers. The rest is padding and is
                never matched. None stands for the whole grids.

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

    def _nearest_cells(self, boxes: Tensor, valid_sizes: Tensor, widths: Tensor, strides: Tensor) -> Tensor:
        """(T, L, k) indices within the level of the k cells nearest to each box's centre; -1 beyond a level's cells."""
        center = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2  # (T, 1, 2) xy
        available = valid_sizes.flip(-1).int()  # (T, L, 2) columns, rows; 32 bits halve the memory traffic
        index = _nearest_on_line(center / strides[:, None] - self.center_offset, available, self.topk)  # (T, L, 2, k)
        offset = (index + self.center_offset) * strides[:, None, None] - center[..., None]
        exists = torch.arange(self.topk, device=boxes.device) < available[..., None]
        squared = offset.square().where(exists, torch.inf)
        index = index.clamp(min=0)  # the index of a cell that does not exist may be negative and would spoil the key
        widths = widths.int()
        columns, rows = to_device_async(self.candidate_ranks, boxes.device)
        distance = squared[..., 0, :].index_select(-1, columns) + squared[..., 1, :].index_select(-1, rows)  # (T, L, C)
        cell = (index[..., 1, :] * widths[:, None]).index_select(-1, rows) + index[..., 0, :].index_select(-1, columns)
        # One integer sorts by distance first and by index second: the bits of a non-negative float sort as the float
        # does, and of two halves side by side in memory the second is the high one (torch's devices are little-endian).
        key = torch.stack((cell, distance.view(torch.int32)), dim=-1).view(torch.int64).squeeze(-1)
        key = key.topk(self.topk, dim=-1, largest=False, sorted=False).values
        return torch.where(key >= _INFINITELY_FAR, -1, key & 0xFFFFFFFF)

    def _select(self, boxes: Tensor, cells: Tensor, widths: Tensor, strides: Tensor) -> tuple[Tensor, Tensor]:
        """IoUs (T, L, k) of the candidates with their ground truth, and a mask (T, L, k) of those that it takes."""
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
        """(num_locations,) winner of each location as an integer, larger for a higher IoU, then for a lower index.

        The high half holds the bits of the IoU and the low half the complement of the ground truth's index among the
        T. It is -1 where no ground truth claims the location.
        """
        rank = 0xFFFFFFFF - torch.arange(len(ious), device=ious.device)[:, None, None]
        claim = torch.where(positive, (ious.view(torch.int32).long() << 32) | rank, -1)
        best = claim.new_full((num_locations,), -1)
        return best.scatter_reduce_(0, locations.flatten(), claim.flatten(), "amax")


def to_device_async(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor of the host to a device without a host-device synchronization."""
    return tensor.to(device, non_blocking=True)


def start_offsets(counts: Sequence[int]) -> Tensor:
    """(N,) int64 index of each image's first ground truth among those of the batch, from their numbers per image."""
    return torch.tensor([0, *itertools.accumulate(counts)][:-1])


def _nearest_on_line(position: Tensor, available: Tensor, k: int) -> Tensor:
    """The k integers of [0, available) nearest to each position, nearest first; of two as near, the lower one first.

    They alternate around the nearest integer, and continue along one side where the other side ends.

    Args:
        position: (...) real positions.
        available: (...) int32, at least 1. Where it is below k, only the first ``available`` entries are meaningful.

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
    """Matched index within each image and IoU, both (N, R), from the integers of :meth:`ATSSAssigner._resolve`."""
    matched = best >= 0
    index = 0xFFFFFFFF - (best & 0xFFFFFFFF) - first[:, None]
    ious = (best >> 32).int().view(torch.float32)
    return torch.where(matched, index, -1), torch.where(matched, ious, 0.0)
