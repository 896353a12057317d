"""SimOTA by hand, and against a slow form that is written from YOLOX's description with loops."""

import math

import pytest
import torch
from clq.modeling.assign.simota import SimOTAAssigner, match_simota
from scenes import grid_centers, make_inputs, random_boxes
from torch import tensor
from torchvision.ops import box_iou

GRIDS, STRIDES = [(12, 16), (6, 8), (3, 4)], [8, 16, 32]


def binary_cross_entropy(p, target):
    return -math.log(p) if target else -math.log(1 - p)


def slow_simota(scores, boxes, centers, strides, valid, gt_boxes, gt_classes, radius, candidates, iou_weight):
    """Matched indices, and the smallest relative gap between two numbers whose order or floor decides something.

    Where that gap is within the noise of float32, which 100,000 in a cost makes large, either decision is right.
    """
    inside, near = set(), set()
    for g, (x1, y1, x2, y2) in enumerate(gt_boxes.tolist()):
        for r, (x, y) in enumerate(centers.tolist()):
            if x1 < x < x2 and y1 < y < y2:
                inside.add((g, r))
            reach = radius * strides[r].item()
            if abs(x - (x1 + x2) / 2) < reach and abs(y - (y1 + y2) / 2) < reach:
                near.add((g, r))
    locations = sorted({r for _, r in inside | near if valid[r]})
    ious, cost = box_iou(gt_boxes.double(), boxes.double()).tolist(), {}
    for g, label in enumerate(gt_classes.tolist()):
        for r in locations:
            by_class = [binary_cross_entropy(math.sqrt(p), k == label) for k, p in enumerate(scores[r].tolist())]
            cost[g, r] = sum(by_class) - iou_weight * math.log(ious[g][r] + 1e-8)
            cost[g, r] += 0 if (g, r) in inside & near else 1e5
    gap, claims = 1.0, {r: [] for r in locations}
    for g in range(len(gt_boxes)):
        total = sum(sorted((ious[g][r] for r in locations), reverse=True)[:candidates])
        k = max(1, int(total))
        ranked = sorted(locations, key=lambda r: cost[g, r])
        for r in ranked[:k]:
            claims[r].append(g)
        gap = min(gap, abs(total - round(total)))
        if k < len(ranked):
            gap = min(gap, cost[g, ranked[k]] / cost[g, ranked[k - 1]] - 1)
    matched = [-1] * len(scores)
    for r, claimants in claims.items():
        if len(claimants) == 1:
            matched[r] = claimants[0]
        elif claimants:
            best, second, *_ = sorted(range(len(gt_boxes)), key=lambda g: cost[g, r])
            matched[r] = best
            gap = min(gap, cost[second, r] / cost[best, r] - 1)
    return matched, gap


def scene(seed, num_gt):
    """Random predictions around the locations, most of them good enough to overlap; a fifth of the map is padding."""
    torch.manual_seed(seed)
    centers, strides = grid_centers(GRIDS, STRIDES)
    sides = torch.rand(len(centers), 4) * 40 + 4
    boxes = torch.cat((centers - sides[:, :2], centers + sides[:, 2:]), dim=1)
    scores = torch.rand(len(centers), 4) * 0.98 + 0.01
    valid = centers[:, 0] < 104
    return scores, boxes, centers, strides, valid, random_boxes(num_gt, (100, 70)), torch.randint(4, (num_gt,))


@pytest.mark.parametrize("num_gt", [1, 4, 12])
@pytest.mark.parametrize(
    "settings", [(2.5, 10, 3.0), (0.75, 10, 3.0), (2.5, 3, 1.0), (2.5, 1000, 3.0)], ids=lambda x: "-".join(map(str, x))
)
def test_equals_the_slow_form_on_random_scenes(num_gt, settings):
    radius, candidates, iou_weight = settings
    compared = 0
    for seed in range(8):
        args = scene(seed, num_gt)
        expected, gap = slow_simota(*args, *settings)
        if gap > 3e-7:
            found = match_simota(*args, radius=radius, candidates=candidates, iou_weight=iou_weight)
            assert found.tolist() == expected
            assert max(expected) >= 0
            compared += 1
    assert compared >= 4


# Five locations 8 pixels apart; a ground truth over the first four, whose centre lies between the second and the third.
CENTERS = tensor([[4.0, 4], [12, 4], [20, 4], [28, 4], [36, 4]])
BOXES = tensor([[0.0, 0, 16, 8], [0, 0, 32, 8], [0, 0, 24, 8], [0, 8, 32, 16], [0, 0, 32, 8]])
GT = tensor([[0.0, 0, 32, 8]])


def match_line(scores, gt_boxes=GT, gt_classes=(0,), valid=(1, 1, 1, 1, 1), centers=CENTERS, boxes=BOXES, **settings):
    n = len(centers)
    args = tensor(scores), boxes, centers, torch.full((n,), 8.0), tensor(valid[:n]) > 0
    return match_simota(*args, gt_boxes, tensor(gt_classes), **{"radius": 1.0, **settings}).tolist()


def test_one_ground_truth_by_hand():
    """IoUs 1/2, 1, 3/4, 0 and 1; the last location is neither inside nor within 8 pixels of the centre.

    The sum is 2.25, hence two locations. The second and the third are the ones near the centre, so they cost 1e5 less.
    """
    quarter = [[0.25]] * 5
    assert match_line(quarter) == [-1, 0, 0, -1, -1]
    assert match_line(quarter, candidates=1) == [-1, 0, -1, -1, -1]  # the largest IoU alone: one location
    # Without the cost of the IoU the class scores decide: -log sqrt(0.81) is the least.
    assert match_line([[0.25], [0.25], [0.81], [0.99], [0.99]], candidates=1, iou_weight=0.0) == [-1, -1, 0, -1, -1]
    # Of 1.25 on the rest, the third location is the one near the centre; then come the best of those far from it.
    assert match_line(quarter, valid=(1, 0, 1, 1, 1)) == [-1, -1, 0, -1, -1]
    assert match_line(quarter, valid=(1, 0, 0, 1, 1)) == [0, -1, -1, -1, -1]  # IoUs of 1/2: still one location
    # With a radius of 3 strides the last location is near, but not inside.
    assert match_line(quarter, radius=3.0, valid=(0, 0, 0, 1, 1)) == [-1, -1, -1, 0, -1]


def test_all_ground_truths_compete_for_a_location_that_several_claim():
    """Two ground truths alike claim the first location, which costs the third less, although it claims the other one.

    Costs at the first location: 2 ln 2 + 3 ln 2 for the first two, 2 ln 2 + 3 ln 1.6 for the third. At the second
    location, where the score of class 0 is 1e-8: more than 9 for the first two, ln 2 for the third.
    """
    centers, boxes = tensor([[7.0, 4], [9, 4]]), tensor([[0.0, 0, 10, 8], [0, 0, 16, 8]])
    gt_boxes = tensor([[0.0, 0, 20, 8], [0, 0, 20, 8], [0, 0, 16, 8]])
    found = match_line([[0.25, 0.25], [1e-8, 0.25]], gt_boxes, (0, 0, 1), centers=centers, boxes=boxes)
    assert found == [2, 2]
    # One of the two alone keeps what it claims.
    assert match_line([[0.25, 0.25], [1e-8, 0.25]], gt_boxes[1:], (0, 1), centers=centers, boxes=boxes) == [0, 1]


def test_scores_of_zero_and_one_have_a_finite_cost():
    """In single precision: torch's binary cross entropy, which YOLOX uses, ends at 100."""
    assert match_line([[1.0], [0.0], [1.0], [0.0], [1.0]], candidates=1) == [-1, -1, 0, -1, -1]
    assert match_line([[0.0], [0.0], [0.0], [0.0], [0.0]]) == [-1, 0, 0, -1, -1]


def test_the_assigner_matches_by_the_trained_scores_and_the_decoded_boxes():
    scores, boxes, centers, strides, valid, gt_boxes, gt_classes = scene(2, 5)
    inputs = make_inputs(
        GRIDS,
        STRIDES,
        [gt_boxes],
        [gt_classes],
        scores=scores[None],
        boxes=boxes[None],
        valid_sizes=[[(12, 13), (6, 7), (3, 4)]],
    )
    assert torch.equal(inputs.valid[0], valid)
    assignment = SimOTAAssigner(2.0, 7, 1.5)(inputs)
    settings = {"radius": 2.0, "candidates": 7, "iou_weight": 1.5}
    expected = match_simota(
        inputs.log_scores[0].exp(), boxes, centers, strides, valid, gt_boxes, gt_classes, **settings
    )
    assert torch.equal(assignment.matched_idxs[0], expected)
    assert assignment.max_positives == 5 * 7
    assert assignment.alignment_metric is None and assignment.ignored is None
