"""Task-aligned matching by hand, and against a slow form with loops that is written from the paper."""

import pytest
import torch
from clq.modeling.assign.task_aligned import TaskAlignedAssigner, match_task_aligned
from scenes import grid_centers, make_inputs, random_boxes
from torch import tensor
from torchvision.ops import box_iou


def slow_task_aligned(scores, boxes, centers, gt_boxes, gt_classes, topk=13, alpha=1.0, beta=6.0):
    """Section 3.3 of the paper for one location and one ground truth at a time."""
    num, matched, raw = len(scores), {}, {}
    for g, (gt, k) in enumerate(zip(gt_boxes, gt_classes, strict=True)):
        iou = box_iou(gt[None], boxes)[0]
        metric = [(scores[r, k] ** alpha * iou[r] ** beta).item() for r in range(num)]
        for r in sorted(range(num), key=lambda r: -metric[r])[:topk]:
            x, y = centers[r].tolist()
            inside = min(x - gt[0], y - gt[1], gt[2] - x, gt[3] - y) > 0.01
            if inside and metric[r] > 0 and (r not in matched or iou[r] > raw[r][1]):
                matched[r], raw[r] = g, (metric[r], iou[r].item())
    scaled = torch.zeros(num)
    for r, g in matched.items():
        own = [raw[other] for other in matched if matched[other] == g]
        scaled[r] = raw[r][0] / max(m for m, _ in own) * max(u for _, u in own)
    return tensor([matched.get(r, -1) for r in range(num)]), scaled


GRIDS, STRIDES = [(12, 16), (6, 8)], [8, 16]


def scene(seed, num_gt, num_classes=4):
    torch.manual_seed(seed)
    centers, _ = grid_centers(GRIDS, STRIDES)
    sides = torch.rand(len(centers), 4) * 40 + 4
    boxes = torch.cat((centers - sides[:, :2], centers + sides[:, 2:]), 1)
    scores = torch.rand(len(centers), num_classes) * 0.98 + 0.01
    return scores, boxes, centers, random_boxes(num_gt, (80, 80)), torch.randint(num_classes, (num_gt,))


@pytest.mark.parametrize("num_gt", [1, 3, 12])
@pytest.mark.parametrize("settings", [{}, {"topk": 4}, {"topk": 1000}, {"alpha": 0.5, "beta": 2.0}])
def test_equals_the_slow_form_on_random_scenes(num_gt, settings):
    for seed in range(3):
        args = scene(seed, num_gt)
        matched, metric = match_task_aligned(*args, **settings)
        expected, expected_metric = slow_task_aligned(*args, **settings)
        assert matched.tolist() == expected.tolist()
        torch.testing.assert_close(metric, expected_metric)
        assert (matched >= 0).any()


def test_by_hand():
    """Four locations along a line, a ground truth over the first three, and boxes of IoU 1/2, 1, 1/2 and 1.

    The alignment metric s u^6 is 0.8/64 = 0.0125, 0.5 and 0.4/64 = 0.00625, and the fourth location lies outside. The
    best metric is scaled to the largest IoU.
    """
    gt = tensor([[0.0, 0, 30, 20]])
    half = [0.0, 0, 30, 10]
    boxes = tensor([half, gt[0].tolist(), half, gt[0].tolist()])
    centers = tensor([[5.0, 10], [15, 10], [25, 10], [35, 10]])
    scores = tensor([[0.1, 0.8], [0.9, 0.5], [0.1, 0.4], [0.9, 1.0]])
    matched, metric = match_task_aligned(scores, boxes, centers, gt, tensor([1]))
    assert matched.tolist() == [0, 0, 0, -1]
    assert metric.tolist() == pytest.approx([0.025, 1, 0.0125, 0])
    # Of the best two, one lies outside; no other location takes its place.
    matched, metric = match_task_aligned(scores, boxes, centers, gt, tensor([1]), topk=2)
    assert matched.tolist() == [-1, 0, -1, -1]
    # With other exponents s^2 u is 0.32, 0.25, 0.08; the best one is scaled to the largest IoU, which is 1.
    _, metric = match_task_aligned(scores, boxes, centers, gt, tensor([1]), alpha=2.0, beta=1.0)
    assert metric.tolist() == pytest.approx([1, 0.25 / 0.32, 0.25, 0])


def test_a_location_that_two_take_goes_to_the_larger_overlap_and_metrics_scale_by_what_stays():
    """Both ground truths take both locations; each box overlaps one of them by 1 and the other one by 1/2."""
    gt = tensor([[0.0, 0, 20, 20], [0, 0, 20, 40]])
    boxes, centers = gt.clone(), tensor([[5.0, 5], [10, 10]])
    scores = tensor([[0.2, 0.9], [0.6, 0.4]])
    matched, metric = match_task_aligned(scores, boxes, centers, gt, tensor([0, 1]))
    assert matched.tolist() == [0, 1]
    assert metric.tolist() == pytest.approx([1, 1])
    same = match_task_aligned(scores, boxes, centers, gt[[0, 0]], tensor([0, 0]))
    assert same[0].max() == 0  # of two equal ground truths the lower index


@pytest.mark.parametrize("num_gt", [0, 2])
def test_without_overlap_or_ground_truths_nothing_matches(num_gt):
    scores, boxes, centers, gt_boxes, gt_classes = scene(0, num_gt)
    matched, metric = match_task_aligned(scores, boxes + 1000, centers, gt_boxes, gt_classes)
    assert (matched == -1).all()
    assert not metric.any()
    assert (matched.shape, metric.shape) == ((240,), (240,))


def test_tiny_metrics_still_scale_to_the_largest_overlap():
    """The ratio counts, also for scores of 1e-20 at an early iteration."""
    scores, boxes, centers, gt_boxes, gt_classes = scene(1, 3)
    expected = match_task_aligned(scores, boxes, centers, gt_boxes, gt_classes)
    found = match_task_aligned(scores * 1e-20, boxes, centers, gt_boxes, gt_classes)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-6)


def test_the_assigner_matches_by_the_trained_scores_and_the_decoded_boxes():
    scores, boxes, _, gt_boxes, gt_classes = args = scene(2, 5)
    inputs = make_inputs(GRIDS, STRIDES, [gt_boxes], [gt_classes], scores=scores[None], boxes=boxes[None])
    assignment = TaskAlignedAssigner(9, 0.5, 4.0)(inputs)
    matched, alignment_metric = match_task_aligned(*args, topk=9, alpha=0.5, beta=4.0)
    assert torch.equal(assignment.matched_idxs[0], matched)
    torch.testing.assert_close(assignment.alignment_metric[0], alignment_metric)
    assert assignment.max_positives == 5 * 9
