"""Assignment by IoU thresholds: against Detectron2's matcher, and by hand where the two differ."""

import pytest
import torch
from clq.modeling.assign.max_iou import MaxIoUAssigner, match_max_iou
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou
from scenes import grid_centers, make_inputs, random_boxes
from torch import tensor

GRIDS, STRIDES = [(12, 16), (6, 8), (3, 4)], [8, 16, 32]


def make_anchors():
    centers, strides = grid_centers(GRIDS, STRIDES)
    half = 4 * strides.unsqueeze(1)
    return torch.cat((centers - half, centers + half), dim=1)


@pytest.mark.parametrize("low_quality_matches", [True, False])
@pytest.mark.parametrize(("lower", "upper"), [(0.4, 0.5), (0.3, 0.7), (0.5, 0.5)])
def test_equals_detectron2s_matcher_where_every_ground_truth_overlaps_an_anchor(lower, upper, low_quality_matches):
    matcher = Matcher([lower, upper], [0, -1, 1], allow_low_quality_matches=low_quality_matches)
    anchors, valid = make_anchors(), torch.ones(252) > 0
    for seed, num_gt in enumerate((1, 3, 10, 40)):
        torch.manual_seed(seed)
        gt_boxes = random_boxes(num_gt, (100, 70))
        ious = pairwise_iou(Boxes(gt_boxes), Boxes(anchors))
        assert ious.amax(dim=1).min() > 0
        expected, labels = matcher(ious)
        settings = {"lower": lower, "upper": upper, "low_quality_matches": low_quality_matches}
        matched_idxs, ignored = match_max_iou(anchors, gt_boxes, valid, **settings)
        assert torch.equal(matched_idxs, torch.where(labels == 1, expected, -1))
        assert torch.equal(ignored, labels == -1)
        assert num_gt < 40 or (matched_idxs >= 0).any()
        assert num_gt < 40 or ignored.any() == (lower < upper)


def match(boxes, valid=(1, 1, 1), low_quality_matches=True):
    """Three anchors of 10 x 10, side by side, against ground truths; ignored from 0.4 to below 0.5."""
    anchors = tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10]])
    settings = {"lower": 0.4, "upper": 0.5, "low_quality_matches": low_quality_matches}
    matched_idxs, ignored = match_max_iou(anchors, tensor(boxes).view(-1, 4), tensor(valid) > 0, **settings)
    return matched_idxs.tolist(), ignored.tolist()


def test_ignored_lies_between_the_thresholds():
    """Ground truths within each anchor: IoU 0.5 is positive, 0.45 and 0.4 are ignored, 0.39 is background."""
    for height, outcome in ((5.0, (0, False)), (4.5, (-1, True)), (4.0, (-1, True)), (3.9, (-1, False))):
        matched_idxs, ignored = match([[0.0, 0, 10, height]], low_quality_matches=False)
        assert (matched_idxs, ignored) == ([outcome[0], -1, -1], [outcome[1], False, False])


def test_the_best_anchors_of_a_ground_truth_are_positive_whatever_their_iou():
    """One in the middle of two anchors: IoU 0.25 with both, of which none surpasses the other."""
    assert match([[6.0, 0, 14, 5]]) == ([0, 0, -1], [False] * 3)
    assert match([[6.0, 0, 14, 5]], low_quality_matches=False) == ([-1] * 3, [False] * 3)
    # The best anchor of the second is matched with the first, which overlaps that anchor more.
    assert match([[0.0, 0, 10, 9], [0, 0, 10, 3]]) == ([0, -1, -1], [False] * 3)


def test_a_ground_truth_that_overlaps_nothing_matches_nothing():
    """In Detectron2 every anchor is its best one."""
    assert match([[50.0, 50, 60, 60]]) == ([-1] * 3, [False] * 3)
    assert match([[50.0, 50, 60, 60], [10, 0, 20, 8]]) == ([-1, 1, -1], [False] * 3)
    assert match([]) == ([-1] * 3, [False] * 3)


def test_on_the_padding_the_second_best_anchor_is_the_best():
    """IoU 1/4 with the first anchor and 3/7 with the second."""
    assert match([[6.0, 0, 16, 10]]) == ([-1, 0, -1], [False] * 3)
    assert match([[6.0, 0, 16, 10]], valid=(1, 0, 1)) == ([0, -1, -1], [False] * 3)


def test_the_assigner_counts_its_positives():
    torch.manual_seed(0)
    gt_boxes = [random_boxes(8, (100, 70)), torch.zeros(0, 4)]
    scores, boxes = torch.full((2, 252, 3), 0.5), torch.zeros(2, 252, 4)
    gt_classes = [torch.zeros(len(b), dtype=torch.int64) for b in gt_boxes]
    inputs = make_inputs(GRIDS, STRIDES, gt_boxes, gt_classes, scores=scores, boxes=boxes)
    assignment = MaxIoUAssigner((0.3, 0.5), low_quality_matches=False)(inputs)
    settings = {"lower": 0.3, "upper": 0.5, "low_quality_matches": False}
    matched_idxs, ignored = match_max_iou(make_anchors(), gt_boxes[0], inputs.valid[0], **settings)
    assert torch.equal(assignment.matched_idxs[0], matched_idxs) and torch.equal(assignment.ignored[0], ignored)
    assert assignment.max_positives == (matched_idxs >= 0).sum() > 0


@pytest.mark.parametrize("thresholds", [(0.5, 0.4), (0.0, 0.5), (0.4, 1.1), (0.4,), (0.3, 0.4, 0.5)])
def test_wrong_thresholds(thresholds):
    with pytest.raises(ValueError, match="the lower one first"):
        MaxIoUAssigner(thresholds)
