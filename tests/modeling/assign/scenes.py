"""Inputs of assigners whose scores and boxes are given, not predicted by a network."""

import torch
from clq.modeling.assign.base import AssignmentInputs
from clq.modeling.box_coding import BoxCoder
from clq.modeling.meta_arch.clq import valid_location_mask
from clq.modeling.scoring import ScoreRule
from clq.modeling.structures import FlatPredictions


class BoxesThemselves(BoxCoder):
    """A coder whose predictions are the boxes."""

    num_channels = 4

    def decode(self, pred, anchors, strides):
        return pred


def grid_centers(grid_sizes, strides):
    """(R, 2) centres xy and (R,) strides of all locations, fine to coarse and row-major."""
    centers = [
        torch.cartesian_prod(torch.arange(float(h)), torch.arange(float(w))).view(-1, 2).flip(1) * stride
        for (h, w), stride in zip(grid_sizes, strides, strict=True)
    ]
    of_locations = [torch.full((len(c),), float(s)) for c, s in zip(centers, strides, strict=True)]
    return torch.cat(centers), torch.cat(of_locations)


def random_boxes(number, size):
    """(number, 4) boxes of 12 to 72 pixels a side, whose first corner lies within ``size`` (width, height)."""
    corner = torch.rand(number, 2) * torch.tensor(size, dtype=torch.float32)
    return torch.cat((corner, corner + torch.rand(number, 2) * 60 + 12), dim=1)


def make_inputs(grid_sizes, strides, gt_boxes, gt_classes, *, scores, boxes, valid_sizes=None):
    """The inputs of an assigner.

    Args:
        grid_sizes: (H, W) of each level.
        strides: stride of each level.
        gt_boxes: for each image its ground-truth boxes (M, 4).
        gt_classes: for each image their classes (M,).
        scores: (N, R, K) scores above 0 and below 1.
        boxes: (N, R, 4) predicted boxes.
        valid_sizes: for each image the (H, W) of each level that it covers; None for the whole grids.
    """
    centers, location_strides = grid_centers(grid_sizes, strides)
    half = 4 * location_strides.unsqueeze(1)
    valid_sizes = torch.tensor(valid_sizes or [grid_sizes] * len(gt_boxes))
    return AssignmentInputs(
        grid_sizes=grid_sizes,
        strides=strides,
        anchors=torch.cat((centers - half, centers + half), dim=1),
        location_strides=location_strides,
        valid_sizes=valid_sizes,
        valid=valid_location_mask(grid_sizes, valid_sizes),
        gt_boxes=gt_boxes,
        gt_classes=gt_classes,
        predictions=FlatPredictions(scores.logit(), boxes, None),
        coder=BoxesThemselves(),
        score=ScoreRule(),
    )
