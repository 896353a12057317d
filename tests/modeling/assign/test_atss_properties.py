"""Properties of ATSS on any boxes, and its equality with a slow form in exact arithmetic."""

from fractions import Fraction

import hypothesis
import torch
from clq.modeling.assign.atss import ATSSAssigner, match_atss
from hypothesis import strategies as st

STRIDES = (8, 16, 32)
GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 6)).map(
    lambda size: [(-(-size[0] * 8 // s), -(-size[1] * 8 // s)) for s in STRIDES]
)
# XYXY in quarters of a pixel, so that float32 holds every distance exactly; some have no area.
BOXES = st.lists(
    st.tuples(st.integers(-40, 200), st.integers(-40, 200), st.integers(0, 160), st.integers(0, 160)).map(
        lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
    ),
    max_size=5,
).map(lambda boxes: [[v / 4 for v in b] for b in boxes])


def iou(a, b):
    """IoU of two XYXY boxes as a fraction; 0 where both have no area."""
    overlap = [max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    inter = overlap[0] * overlap[1]
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union else Fraction(0)


def locations(grids, scale=8):
    """(level, centre, anchor) of every location, in fractions."""
    for level, ((h, w), stride) in enumerate(zip(grids, STRIDES, strict=True)):
        for y in range(h):
            for x in range(w):
                cx, cy, half = Fraction(x * stride), Fraction(y * stride), Fraction(scale * stride, 2)
                yield level, (cx, cy), (cx - half, cy - half, cx + half, cy + half)


def slow_atss(grids, boxes, topk):
    """ATSS (Zhang et al. 2020, algorithm 1) by loops and without rounding.

    Returns:
        For each location the ground truth or -1, and whether some decision is closer than float32 can tell.
    """
    places, matched, best, close = list(locations(grids)), {}, {}, False
    for m, box in enumerate([[Fraction(v) for v in b] for b in boxes]):
        center = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        candidates = []
        for level in range(len(grids)):
            of_level = [r for r, place in enumerate(places) if place[0] == level]
            distance = {r: sum((p - q) ** 2 for p, q in zip(places[r][1], center, strict=True)) for r in of_level}
            candidates += sorted(of_level, key=lambda r, d=distance: (d[r], r))[:topk]
        ious = {r: iou(places[r][2], box) for r in candidates}
        mean = sum(ious.values()) / len(ious)
        variance = sum((u - mean) ** 2 for u in ious.values()) / max(len(ious) - 1, 1)
        for r, u in ious.items():
            x, y = places[r][1]
            if min(x - box[0], y - box[1], box[2] - x, box[3] - y) <= Fraction(1, 100):
                continue
            gap = float(u - mean) - float(variance) ** 0.5
            close = close or (abs(gap) < 1e-6 and len(ious) > 1)
            if gap >= 0 or len(ious) == 1:
                close = close or (r in best and u != best[r] and abs(float(u - best[r])) < 1e-6)
                if u > best.get(r, -1):
                    matched[r], best[r] = m, u
    return [matched.get(r, -1) for r in range(len(places))], close


@hypothesis.given(GRIDS, BOXES, st.integers(1, 12))
def test_equals_the_slow_form(grids, boxes, topk):
    expected, close = slow_atss(grids, boxes, topk)
    hypothesis.assume(not close)
    assert match_atss(grids, STRIDES, torch.tensor(boxes), topk=topk)[0].tolist() == expected


@hypothesis.given(GRIDS, BOXES, st.integers(1, 12))
def test_a_match_lies_inside_and_a_box_takes_at_most_k_of_a_level(grids, boxes, topk):
    matched, ious = match_atss(grids, STRIDES, torch.tensor(boxes), topk=topk)
    taken = {}
    for (level, (x, y), anchor), m, u in zip(locations(grids), matched.tolist(), ious.tolist(), strict=True):
        if m < 0:
            assert u == 0
            continue
        x1, y1, x2, y2 = boxes[m]
        assert x1 < x < x2 and y1 < y < y2
        assert abs(u - iou(anchor, [Fraction(v) for v in boxes[m]])) < 1e-6
        taken[m, level] = taken.get((m, level), 0) + 1
    assert max(taken.values(), default=0) <= topk


@hypothesis.given(GRIDS, BOXES, st.randoms(use_true_random=False))
def test_the_order_of_the_ground_truths_decides_equal_ious_alone(grids, boxes, random):
    order = list(range(len(boxes)))
    random.shuffle(order)
    matched, ious = match_atss(grids, STRIDES, torch.tensor(boxes))
    shuffled, shuffled_ious = match_atss(grids, STRIDES, torch.tensor([boxes[i] for i in order]))
    assert torch.equal(ious, shuffled_ious)
    for r, (a, b) in enumerate(zip(matched.tolist(), shuffled.tolist(), strict=True)):
        b = order[b] if b >= 0 else -1
        if a != b:  # two boxes with the same IoU, of which the first one wins
            place = list(locations(grids))[r]
            assert min(a, b) >= 0
            assert abs(float(iou(place[2], [Fraction(v) for v in boxes[a]])) - ious[r].item()) < 1e-6
            assert abs(float(iou(place[2], [Fraction(v) for v in boxes[b]])) - ious[r].item()) < 1e-6


@hypothesis.given(GRIDS, BOXES, st.tuples(st.integers(0, 4), st.integers(0, 4)))
def test_padding_is_never_matched_and_changes_nothing(grids, boxes, padding):
    padded = [(h + padding[0], w + padding[1]) for h, w in grids]
    alone = match_atss(grids, STRIDES, torch.tensor(boxes))
    gt = torch.tensor(boxes).view(-1, 4)
    in_batch = ATSSAssigner().match(padded, STRIDES, [gt], torch.tensor([grids]))
    for own, found, fill in zip(alone, in_batch, (-1, 0), strict=True):
        own = own.split([h * w for h, w in grids])
        for part, level, (h, w) in zip(own, found[0].split([h * w for h, w in padded]), grids, strict=True):
            expected = torch.full((h + padding[0], w + padding[1]), fill, dtype=part.dtype)
            expected[:h, :w] = part.view(h, w)
            assert torch.equal(level, expected.flatten())
