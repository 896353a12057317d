"""ATSS against its textbook form, which computes all distances and IoUs."""

import random
import weakref

import pytest
import torch
from clq.modeling.assign.atss import ATSSAssigner, match_atss
from scenes import make_inputs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

STRIDES = (8, 16, 32, 64, 128)


def textbook_atss(grid_sizes, strides, gt_boxes, topk=9, anchor_scale=8.0, center_offset=0.0):
    """ATSS in float64 with R x M matrices (Zhang et al. 2020, algorithm 1); the deviation of a single candidate is 0.

    Returns:
        Matched index (R,), IoU (R,), and the margin of the closest decision: IoU to threshold, or IoU to IoU where two
        boxes claim one anchor. Decisions within float32 noise may go either way.
    """
    levels = []
    for (h, w), stride in zip(grid_sizes, strides, strict=True):
        y, x = torch.meshgrid(torch.arange(h).double(), torch.arange(w).double(), indexing="ij")
        levels.append((torch.stack((x, y), -1).view(-1, 2) + center_offset) * stride)
    half = torch.cat([torch.full((len(c), 1), anchor_scale * s / 2) for c, s in zip(levels, strides, strict=True)])
    centers = torch.cat(levels)
    anchors = torch.cat((centers - half, centers + half), 1)
    matched, matched_iou, margin = torch.full((len(centers),), -1), torch.zeros(len(centers)).double(), 1.0
    for m, box in enumerate(gt_boxes.double()):
        candidates, first = [], 0
        for c in levels:
            squared = (c - (box[:2] + box[2:]) / 2).square().sum(1)
            candidates.append(first + squared.argsort(stable=True)[:topk])
            first += len(c)
        candidates = torch.cat(candidates)
        a = anchors[candidates]
        inter = (a[:, 2:].minimum(box[2:]) - a[:, :2].maximum(box[:2])).clamp(min=0).prod(1)
        iou = inter / ((a[:, 2:] - a[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - inter)
        gap = iou - iou.mean() - (iou.std(unbiased=True) if len(iou) > 1 else 0)
        inside = torch.cat((centers[candidates] - box[:2], box[2:] - centers[candidates]), 1).amin(1) > 0.01
        if len(iou) > 1 and inside.any():
            margin = min(margin, gap[inside].abs().min().item())
        for r, value in zip(candidates[inside & (gap >= 0)], iou[inside & (gap >= 0)], strict=True):
            if matched[r] >= 0 and value != matched_iou[r]:
                margin = min(margin, abs(value - matched_iou[r]).item())
            if value > matched_iou[r]:
                matched[r], matched_iou[r] = m, value
    return matched, matched_iou, margin


def random_boxes(rng, extent, number):
    """Boxes of many kinds, in half pixels: squared distances are exact in float32, so equal ones stay equal."""
    boxes = []
    for _ in range(number):
        kind = rng.choice(["any", "any", "pixel", "image", "outside", "lattice"])
        step = {"lattice": 8}.get(kind, 0.5)
        low, high = (-0.5, 1.5) if kind == "outside" else (0.0, 1.0)
        x1, y1 = (round(rng.uniform(low, high) * e / step) * step for e in extent)
        w, h = (max(round(rng.random() ** 2 * e / step), 1) * step for e in extent)
        boxes.append({"pixel": (x1, y1, x1 + 1, y1 + 1), "image": (0, 0, *extent)}.get(kind, (x1, y1, x1 + w, y1 + h)))
    return torch.tensor(boxes).view(-1, 4)


def random_grids(rng):
    """One to five levels of a pyramid within 450 pixels, or up to three levels of arbitrary sizes."""
    if rng.random() < 0.5:
        h, w = rng.randint(1, 450), rng.randint(1, 450)
        first = rng.randint(0, 4)
        return [(-(-h // s), -(-w // s)) for s in STRIDES[first:]], STRIDES[first:]
    grids = [rng.choice([(1, 1), (1, 20), (20, 1), (2, 3), (3, 3), (2, 2), (7, 5)]) for _ in range(rng.randint(1, 3))]
    return grids, STRIDES[: len(grids)]


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_textbook_on_random_scenes(seed):
    rng, compared, positives = random.Random(seed), 0, 0
    for _ in range(60):
        grids, strides = random_grids(rng)
        extent = [max(g[i] * s for g, s in zip(grids, strides, strict=True)) for i in (1, 0)]
        gt = random_boxes(rng, extent, rng.choice([0, 1, 2, 5, 12]))
        how = {"topk": rng.randint(1, 13), "anchor_scale": rng.choice([8.0, 5.0, 1.0])}
        how["center_offset"] = rng.choice([0.0, 0.5])
        idxs, ious, margin = textbook_atss(grids, strides, gt, **how)
        if margin > 1e-6:
            ours = match_atss(grids, strides, gt, **how)
            assert torch.equal(ours[0], idxs), (grids, gt, how)
            torch.testing.assert_close(ours[1].double(), ious, atol=1e-6, rtol=0)
            compared, positives = compared + 1, positives + int((idxs >= 0).sum())
    assert compared >= 40  # of 60: the others have an IoU within float32 noise of the threshold
    assert positives >= 40


def test_equals_the_textbook_with_500_boxes():
    grids = [(-(-400 // s), -(-440 // s)) for s in STRIDES]
    gt = random_boxes(random.Random(4), (440, 400), 500)
    idxs, ious, margin = textbook_atss(grids, STRIDES, gt)
    assert margin > 1e-7, "a decision lies within the noise of float32; take another seed"
    ours = match_atss(grids, STRIDES, gt)
    assert torch.equal(ours[0], idxs)
    torch.testing.assert_close(ours[1].double(), ious, atol=1e-6, rtol=0)
    assert (idxs >= 0).sum() > 300


def test_a_batch_equals_each_image_on_the_part_of_the_grids_that_it_covers():
    rng, grids = random.Random(3), [(-(-352 // s), -(-416 // s)) for s in STRIDES]
    sizes = [(352, 416), (1, 1), (64, 416), (352, 96), (200, 160), (96, 96)]
    gt = [random_boxes(rng, size[::-1], m) for size, m in zip(sizes, (40, 2, 10, 0, 25, 9), strict=True)]
    valid = torch.tensor([[(-(-h // s), -(-w // s)) for s in STRIDES] for h, w in sizes])
    idxs, ious = ATSSAssigner().match(grids, STRIDES, gt, valid)
    for i in range(len(sizes)):
        own_idxs, own_ious = match_atss([tuple(v) for v in valid[i].tolist()], STRIDES, gt[i])
        expected = []
        for own, fill in ((own_idxs, -1), (own_ious, 0.0)):
            parts = own.split(valid[i].prod(1).tolist())
            canvas = [torch.full(g, fill, dtype=own.dtype) for g in grids]
            for full, part, (h, w) in zip(canvas, parts, valid[i].tolist(), strict=True):
                full[:h, :w] = part.view(h, w)
            expected.append(torch.cat([c.flatten() for c in canvas]))
        assert torch.equal(idxs[i], expected[0])
        assert torch.equal(ious[i], expected[1])
    assert (idxs >= 0).any(dim=1).tolist() == [True, False, True, False, True, True]


def test_one_ground_truth_may_take_its_share_of_every_level():
    """Midway between the anchors of two levels, with one candidate on each of five: it takes both."""
    half = 2**0.5 * 64 / 2
    box = torch.tensor([[64 - half, 64 - half, 64 + half, 64 + half]])
    grids = [(-(-256 // s), -(-256 // s)) for s in STRIDES]
    scores, boxes = torch.full((1, 1364, 1), 0.5), torch.zeros(1, 1364, 4)
    inputs = make_inputs(grids, STRIDES, [box], [torch.tensor([0])], scores=scores, boxes=boxes)
    assignment = ATSSAssigner(topk=1)(inputs)
    assert (assignment.matched_idxs >= 0).sum() == 2
    assert assignment.max_positives == 5


def test_without_boxes_nothing_matches():
    idxs, ious = match_atss([(3, 4), (2, 2)], (8, 16), torch.zeros(0, 4))
    assert (idxs.dtype, ious.dtype) == (torch.int64, torch.float32)
    assert (idxs.tolist(), ious.tolist()) == ([-1] * 16, [0.0] * 16)


@pytest.mark.parametrize(
    ("grid", "box", "topk", "expected"),
    [
        # Anchors of 8 x 8 inside a box of 16 x 16 around (4, 4): IoU 1/4, and all four are equally near.
        ((2, 2), (-4, -4, 12, 12), 1, [0]),
        ((2, 2), (-4, -4, 12, 12), 2, [0, 1]),
        ((2, 2), (-4, -4, 12, 12), 3, [0, 1, 2]),
        ((2, 2), (-4, -4, 12, 12), 9, [0, 1, 2, 3]),
        # 32 x 32 around the middle cell of nine: the middle, then four at 8 pixels, then the corners.
        ((3, 3), (-8, -8, 24, 24), 2, [1, 4]),
        ((3, 3), (-8, -8, 24, 24), 4, [1, 3, 4, 5]),
        ((3, 3), (-8, -8, 24, 24), 6, [0, 1, 3, 4, 5, 7]),
        # The same box on a single row of cells above its centre (8, 8): the nearest cells of the row.
        ((1, 4), (-8, -8, 24, 24), 2, [0, 1]),
    ],
)
def test_ties_go_to_the_lower_index(grid, box, topk, expected):
    idxs, ious = match_atss([grid], [8], torch.tensor([box]).float(), topk=topk, anchor_scale=1.0)
    assert (idxs == 0).nonzero().flatten().tolist() == expected
    area = (box[2] - box[0]) * (box[3] - box[1])
    assert ious[expected].tolist() == [64 / area] * len(expected)


def test_an_anchor_claimed_twice_goes_to_the_higher_iou_then_to_the_lower_index():
    exact, wider = [-4.0, -4, 4, 4], [-4.0, -4, 6, 4]  # IoU 1 and 64/80 with the first anchor, the nearest to both
    for boxes, winner, iou in (([wider, exact], 1, 1.0), ([exact, wider], 0, 1.0), ([wider, wider], 0, 0.8)):
        idxs, ious = match_atss([(1, 2)], [8], torch.tensor(boxes), topk=1, anchor_scale=1.0)
        assert idxs.tolist() == [winner, -1]
        torch.testing.assert_close(ious, torch.tensor([iou, 0.0]))


@pytest.mark.parametrize("side", range(4))
def test_the_centre_must_lie_inside_by_more_than_a_hundredth_of_a_pixel(side):
    for distance, expected in ((0.02, 0), (0.009, -1), (0.0, -1), (-1.0, -1)):
        box = [-4.0, -4, 4, 4]
        box[side] = distance * (-1 if side < 2 else 1)
        assert match_atss([(1, 1)], [8], torch.tensor([box]))[0].tolist() == [expected]


class Meter(TorchDispatchMode):
    """Counts operations, and the bytes of the tensors that are alive at once."""

    def __init__(self):
        super().__init__()
        self.operations = self.alive = self.peak = 0
        self.owners = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        for tensor in {id(t): t for t in tree_leaves(out) if isinstance(t, torch.Tensor)}.values():
            storage = tensor.untyped_storage()
            key, size = storage.data_ptr(), storage.nbytes()
            self.owners[key] = self.owners.get(key, 0) + 1
            self.alive += size if self.owners[key] == 1 else 0
            self.peak = max(self.peak, self.alive)
            weakref.finalize(tensor, self.release, key, size)
        return out

    def release(self, key, size):
        self.owners[key] -= 1
        self.alive -= 0 if self.owners[key] else size


def metered(match, size, number):
    boxes = torch.rand(number, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor(size)
    grids = [(-(-size[1] // s), -(-size[0] // s)) for s in STRIDES]
    with Meter() as meter:
        match(grids, STRIDES, torch.cat((boxes, boxes + 50), 1))
    return meter


def test_memory_and_work_do_not_grow_with_the_number_of_anchors_times_boxes():
    meter = metered(match_atss, (1216, 800), 300)
    assert 1e5 < meter.peak < 10e6
    # No loop over boxes, cells or levels.
    assert meter.operations == metered(match_atss, (64, 64), 2).operations < 300
    # The meter does see the distances of one box to 20,000 anchors (float64), which only the textbook form computes.
    assert metered(textbook_atss, (1216, 800), 1).peak > 20_000 * 8 * 4
