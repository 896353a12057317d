"""What a batch is trained towards: from matches to the rows on which the losses of positives are computed.

Legend: N images, L levels, R locations over all levels, M ground truths of one image, P rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from clq.modeling.assign.atss import start_offsets, to_device_async
from clq.modeling.structures import Targets


@torch.no_grad()
def make_targets(
    matched_idxs: Tensor,
    gt_boxes: Sequence[Tensor],
    gt_classes: Sequence[Tensor],
    *,
    anchors: Tensor,
    valid: Tensor,
    max_positives: int,
    alignment: Tensor | None = None,
) -> Targets:
    """Targets of a batch.

    Args:
        matched_idxs: (N, R), see :func:`~clq.modeling.assign.atss.match_atss`.
        gt_boxes, gt_classes: per image, (M, 4) XYXY pixels and (M,).
        anchors: (R, 4) XYXY pixels.
        valid: (N, R), see :class:`~clq.modeling.structures.Targets`.
        max_positives: upper bound, known on the host, on the number of matched locations.
        alignment: (N, R), if the matches are task-aligned.
    """
    num_locations = matched_idxs.shape[1]
    positive = matched_idxs >= 0
    place, is_positive = nonzero_padded(positive.flatten(), min(max_positives, positive.numel()))
    image, location = place // num_locations, place % num_locations
    first = to_device_async(start_offsets([len(b) for b in gt_boxes]), anchors.device)
    index = torch.where(is_positive, matched_idxs[image, location] + first[image], 0)
    return Targets(
        image=image,
        location=location,
        is_positive=is_positive,
        gt_boxes=torch.where(is_positive.unsqueeze(-1), torch.cat(list(gt_boxes))[index], anchors[location]),
        gt_classes=torch.cat(list(gt_classes))[index],
        valid=valid,
        num_pos=positive.sum(dim=1).clamp(min=1).sum().float() if alignment is None else alignment.sum(),
        alignment=None if alignment is None else alignment[image, location],
    )


def nonzero_padded(mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """:meth:`Tensor.nonzero` of a mask (X,), which the host need not wait for.

    Args:
        mask: with at most ``size`` true elements.
        size: at most X.

    Returns:
        ``places`` (size,) int64, those of the mask that are true, in order, and after them any, each once: of many rows
        at one place, a GPU would add up the gradients one by one. And ``is_true`` (size,) bool, True for the former.
    """
    counter = torch.arange(len(mask), device=mask.device)
    slot = torch.where(mask, mask.cumsum(0) - 1, size)  # what is not true goes to one slot more, and with it
    places = torch.cat((counter[:size], counter[:1])).scatter_(0, slot, counter)[:size]
    return places, counter[:size] < mask.sum()


def valid_location_mask(grid_sizes: Sequence[tuple[int, int]], valid_sizes: Tensor) -> Tensor:
    """(N, R) bool: locations within the first (rows, columns) = ``valid_sizes`` (N, L, 2) of each level's grid."""
    device = valid_sizes.device
    masks = []
    for (h, w), valid in zip(grid_sizes, valid_sizes.unbind(dim=1), strict=True):
        rows = torch.arange(h, device=device) < valid[:, :1]  # (N, H)
        columns = torch.arange(w, device=device) < valid[:, 1:]  # (N, W)
        masks.append((rows[:, :, None] & columns[:, None]).flatten(1))
    return torch.cat(masks, dim=1)
