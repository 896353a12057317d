"""Scores and losses at any logits up to 1e4, also under autocast, against their formulas in exact arithmetic."""

import math
from decimal import Decimal, localcontext

import hypothesis
import pytest
import torch
from clq.modeling.losses import (
    centerness,
    distribution_focal_loss,
    focal_loss,
    giou_loss,
    quality_focal_loss,
    varifocal_loss,
)
from clq.modeling.scoring import joint_score
from clq.modeling.structures import LogScore
from hypothesis import strategies as st

LOGITS = st.sampled_from([-1e4, -200.0, -104.0, -20.0, 0.0, 19.99, 20.01, 88.0, 104.0, 200.0, 1e4]) | st.floats(
    -1e4, 1e4, width=32
)
ALPHAS = st.sampled_from([0.1, 0.3, 0.5, 1.0, 2.0])
UNIT = st.sampled_from([0.0, 1.0]) | st.floats(0, 1, width=32)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
LOSSES = {"quality": quality_focal_loss, "focal": focal_loss, "varifocal": varifocal_loss}
every_loss = pytest.mark.parametrize("name", LOSSES)


def softplus(x):
    """log(1 + e^x) in the precision of the context, where 1 + e^x may not be distinguishable from 1."""
    if x > 0:
        return x + softplus(-x)
    small = x.exp()
    return small if small < Decimal("1e-40") else (1 + small).ln()


def exact_score(c, q, alpha):
    """log p and log(1 - p) of p = sigmoid(c) sigmoid(q)^alpha; q may be None."""
    c, log_quality = Decimal(c), Decimal(0) if q is None else -Decimal(alpha) * softplus(-Decimal(q))
    log_cls, not_cls = -softplus(-c), (-softplus(c)).exp()
    not_quality = -log_quality if log_quality > Decimal("-1e-40") else 1 - log_quality.exp()
    return log_cls + log_quality, (not_cls + log_cls.exp() * not_quality).ln()


def exact_loss(name, log_p, log_not_p, y):
    y, p = Decimal(y), log_p.exp()
    if name == "quality":
        return (y - p) ** 2 * -(y * log_p + (1 - y) * log_not_p)
    if name == "focal":
        positive, negative = Decimal("0.25") * (2 * log_not_p).exp() * log_p, (2 * log_p).exp() * log_not_p
        return -(y * positive + (1 - y) * Decimal("0.75") * negative)
    if y > 0:
        return -y * (y * log_p + (1 - y) * log_not_p)
    return -Decimal("0.75") * p**2 * log_not_p


def in_autocast(c, q, alpha, dtype):
    """Logits of a dtype as parameters, and their joint score under autocast."""
    c, q = (None if x is None else torch.tensor([x]).to(dtype).requires_grad_() for x in (c, q))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        return c, q, joint_score(c, q, alpha)


@hypothesis.given(LOGITS, st.none() | LOGITS, ALPHAS, DTYPES)
def test_the_score_equals_its_formula(c, q, alpha, dtype):
    c, q, score = in_autocast(c, q, alpha, dtype)
    with localcontext() as context:
        context.prec = 80
        expected = [float(x) for x in exact_score(c.item(), None if q is None else q.item(), alpha)]
    for found, value in zip(score, expected, strict=True):
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(value, rel=2e-6, abs=2e-7)


@every_loss
@hypothesis.given(LOGITS, st.none() | LOGITS, ALPHAS, UNIT, DTYPES)
def test_the_loss_equals_its_formula_and_has_finite_gradients(name, c, q, alpha, y, dtype):
    if name == "focal":
        y = float(y > 0.5)
    c, q, score = in_autocast(c, q, alpha, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = LOSSES[name](score, torch.tensor([y]))
    loss.sum().backward()
    with localcontext() as context:
        context.prec = 80
        parts = exact_score(c.item(), None if q is None else q.item(), alpha)
        expected = float(exact_loss(name, *parts, y))
    assert loss.dtype == torch.float32
    # The score and the target are near 1 in float32, so their difference has an absolute error.
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    for x in (c, q):
        assert x is None or x.grad.isfinite().all()


@hypothesis.given(UNIT, st.floats(-20, 20, width=32))
def test_quality_focal_loss_is_zero_at_the_target_and_positive_elsewhere(y, logit):
    y = min(max(y, 1e-3), 1 - 1e-3)
    at_target = LogScore(torch.tensor([math.log(y)]), torch.tensor([math.log1p(-y)]))
    target = torch.tensor([y])
    assert quality_focal_loss(at_target, target).item() < 1e-10
    other = quality_focal_loss(joint_score(torch.tensor([logit]), None), target).item()
    assert other >= 0
    if abs(1 / (1 + math.exp(-logit)) - y) > 1e-3:
        assert other > 1e-10


@every_loss
def test_losses_of_nothing_are_empty(name):
    score = joint_score(torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 1), 0.3)
    loss = LOSSES[name](score, torch.zeros(0, 3))
    assert loss.shape == (0, 3)
    loss.sum().backward()
    assert distribution_focal_loss(torch.zeros(0, 17), torch.zeros(0)).shape == (0,)
    assert giou_loss(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)
    assert centerness(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


@hypothesis.given(st.lists(LOGITS, min_size=2, max_size=17), st.floats(0, 1), DTYPES)
def test_distribution_focal_loss_equals_its_formula(logits, part, dtype):
    logits = torch.tensor([logits]).to(dtype).requires_grad_()
    bins = logits.shape[1]
    target = torch.tensor([part * (bins - 1)])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = distribution_focal_loss(logits, target)
    loss.sum().backward()
    assert logits.grad.isfinite().all()
    near = (1 - (target.double()[:, None] - torch.arange(bins)).abs()).clamp(min=0)
    expected = -(near * logits.double().log_softmax(1)).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)


COORDINATES = st.integers(-4000, 4000).map(lambda v: v / 4)
BOX = st.tuples(COORDINATES, COORDINATES, st.integers(0, 8000), st.integers(0, 8000)).map(
    lambda b: [b[0], b[1], b[0] + b[2] / 4, b[1] + b[3] / 4]
)


@hypothesis.given(BOX, BOX)
def test_giou_loss_is_bounded_symmetric_and_zero_for_equal_boxes(a, b):
    a, b = (torch.tensor([x]).requires_grad_() for x in (a, b))
    loss = giou_loss(a, b)
    loss.sum().backward()
    assert -1e-6 <= loss.item() <= 2 + 1e-6
    assert giou_loss(b, a).item() == pytest.approx(loss.item(), abs=1e-6)
    assert all(x.grad.isfinite().all() for x in (a, b))
    has_area = (a[0, 2:] > a[0, :2]).all()
    assert not has_area or giou_loss(a, a).item() == pytest.approx(0, abs=1e-6)


@hypothesis.given(BOX, COORDINATES, COORDINATES)
def test_centerness_is_finite_for_any_box(box, x, y):
    """Also for a box without area, exactly at its centre, where both distances are 0."""
    for cx, cy in ((x, y), (box[0], box[1]), ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)):
        anchor = torch.tensor([[cx - 32, cy - 32, cx + 32, cy + 32]])
        found = centerness(anchor, torch.tensor([box])).item()
        assert 0 <= found <= 1
        if box[2] - box[0] > 1 and box[3] - box[1] > 1 and (cx, cy) == ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2):
            assert found == pytest.approx(1, abs=1e-3)
        if not (box[0] < cx < box[2] and box[1] < cy < box[3]):
            assert found == 0
