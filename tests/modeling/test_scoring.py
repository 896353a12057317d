"""The joint score against its formula computed with 120 decimal digits, where nothing saturates."""

from decimal import Decimal, localcontext

import pytest
import torch
from clq.modeling.losses import quality_focal_loss
from clq.modeling.scoring import ScoreRule, joint_score
from clq.modeling.structures import LogScore

LOGITS = [-120, -95, -60, -30, -20.5, -16, -9, -4, -1, -0.1, 0, 0.3, 2, 5, 9, 14, 17, 19.9, 20.1, 25, 40, 70, 89, 90]
ALPHAS = (0.3, 1.0, 2.0)


def exact(c, q, alpha, target, cls_alpha=1):
    """log p, log(1 - p) and the gradient (d/dc, d/dq) of QFL (beta 2) towards ``target``, for float logits."""
    with localcontext() as context:
        context.prec = 120
        c, q, alpha, y = Decimal(c), Decimal(q), Decimal(alpha), Decimal(target)
        not_cls, not_quality = 1 / (1 + c.exp()), 1 / (1 + q.exp())
        cls_alpha = Decimal(cls_alpha)
        p = (1 - not_cls) ** cls_alpha * (1 - not_quality) ** alpha
        bce = -(y * p.ln() + (1 - y) * (1 - p).ln())
        by_p = 2 * (p - y) * bce + (p - y) ** 2 * ((1 - y) / (1 - p) - y / p)
        return [
            float(x) for x in (p.ln(), (1 - p).ln(), by_p * p * cls_alpha * not_cls, by_p * p * alpha * not_quality)
        ]


@pytest.mark.parametrize(("alpha", "cls_alpha"), [*((alpha, 1.0) for alpha in ALPHAS), (0.5, 0.5), (1.0, 2.0)])
@pytest.mark.parametrize("target", [0.0, 0.7, 1.0])
def test_values_and_loss_gradients_are_exact_to_float32(alpha, cls_alpha, target):
    c, q = (x.reshape(-1, 1).requires_grad_() for x in torch.meshgrid(*[torch.tensor(LOGITS)] * 2, indexing="ij"))
    score = joint_score(c, q, alpha, cls_alpha)
    quality_focal_loss(score, torch.full_like(score.log_p, target)).sum().backward()
    ours = torch.cat((*score, c.grad, q.grad), 1).detach().double()
    pairs = zip(c.flatten().tolist(), q.flatten().tolist(), strict=True)
    expected = torch.tensor([exact(*pair, alpha, target, cls_alpha) for pair in pairs], dtype=torch.float64)
    torch.testing.assert_close(ours[:, :2], expected[:, :2], rtol=5e-7, atol=2e-7)
    assert (ours[:, 2:] - expected[:, 2:]).abs().max() <= 4e-7  # of gradients up to 1: a few float32 roundings


@pytest.mark.parametrize("alpha", ALPHAS)
def test_finite_with_finite_gradients_everywhere(alpha):
    extremes = torch.tensor([-1e4, -120.0, -100, -88, -17, 0, 17, 88, 100, 120, 1e4])
    c, q = (x.clone().requires_grad_() for x in torch.meshgrid(extremes, extremes, indexing="ij"))
    score = joint_score(c, q, alpha)
    for target in (0.0, 0.5, 1.0):
        grads = torch.autograd.grad(
            quality_focal_loss(score, torch.full_like(c, target)).sum(), (c, q), retain_graph=True
        )
        assert all(g.isfinite().all() for g in grads)
    for part in score:
        assert part.isfinite().all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(part.sum(), (c, q), retain_graph=True))


def test_a_confident_wrong_negative_keeps_its_gradient():
    """At c = q = 90 on background, 1 - p is e^-90 (1 + alpha), and the gradients of its logarithm sum to -1."""
    c, q = torch.tensor([90.0], requires_grad=True), torch.tensor([90.0], requires_grad=True)
    score = joint_score(c, q, 0.3)
    score.log_not_p.sum().backward()
    torch.testing.assert_close(score.log_not_p, torch.tensor([-90 + 0.26236426]))
    torch.testing.assert_close((c.grad, q.grad), (torch.tensor([-1 / 1.3]), torch.tensor([-0.3 / 1.3])))


def test_gradcheck_in_float64():
    torch.manual_seed(0)
    c = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    q = torch.tensor([-9.0, -1, 0.5, 4, 19, 22], dtype=torch.float64).view(2, 3, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda c, q: tuple(joint_score(c, q, 0.3)), (c, q))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    torch.manual_seed(0)
    c, q = (torch.rand(50, 3) * 240 - 120).to(dtype), (torch.rand(50, 1) * 240 - 120).to(dtype)
    expected = joint_score(c.float(), q.float(), 0.3)
    with torch.autocast("cpu", dtype):
        inside = joint_score(c, q, 0.3), joint_score(c.float(), q.float(), 0.3), joint_score(c, None)
        loss = quality_focal_loss(inside[0], torch.zeros(50, 3))
    for score in (*inside, joint_score(c, q, 0.3), joint_score(c, None)):
        assert {x.dtype for x in score} == {torch.float32}
    for score in (inside[0], inside[1], joint_score(c, q, 0.3)):
        assert torch.equal(torch.stack(score), torch.stack(expected))
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()


def test_one_quality_serves_all_classes_of_its_location():
    torch.manual_seed(0)
    c, q = torch.randn(2, 5, 3), torch.randn(2, 5)
    expected = torch.stack([torch.stack(joint_score(c[..., k], q, 0.3)) for k in range(3)], -1)
    for quality in (q, q.unsqueeze(-1)):
        torch.testing.assert_close(torch.stack(joint_score(c, quality, 0.3)), expected)
    torch.testing.assert_close(expected[0].exp(), c.sigmoid() * q.sigmoid().pow(0.3).unsqueeze(-1))
    assert expected.shape == (2, 2, 5, 3)
    # The quality belongs to locations also where K equals R or is 1.
    assert joint_score(torch.zeros(2, 3, 3), torch.zeros(2, 3)).log_p.shape == (2, 3, 3)
    assert joint_score(torch.zeros(2, 3, 1), torch.zeros(2, 3)).log_p.shape == (2, 3, 1)


def test_without_quality_it_is_the_class_probability():
    c = torch.tensor([[0.0, -3.0, 40.0]])
    score = joint_score(c, None, 0.3)
    torch.testing.assert_close(score.log_p.exp(), c.sigmoid())
    torch.testing.assert_close(score.log_not_p, torch.tensor([[-0.69314718, -0.04858735, -40.0]]))


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(ValueError, match="alpha must be positive"):
        joint_score(torch.zeros(1, 1), torch.zeros(1, 1), alpha)
    with pytest.raises(ValueError, match="alpha must be positive"):
        joint_score(torch.zeros(1, 1), None, cls_alpha=alpha)


def test_rules_of_atss_and_clq():
    """Class 0.8 (logit ln 4), quality 0.5 (logit 0)."""
    c, q = torch.tensor([[4.0]]).log(), torch.zeros(1, 1)

    def values(rule):
        return [rule.trained(c, q).log_p.exp().item(), rule.final(c, q).log_p.exp().item()]

    assert values(ScoreRule(alpha=1.0, joint=False)) == pytest.approx([0.8, 0.4])  # ATSS: centerness at test only
    assert values(ScoreRule(0.5, joint=True, cls_alpha=0.5)) == pytest.approx([(0.8 * 0.5) ** 0.5] * 2)  # TOOD
    assert values(ScoreRule(alpha=0.3, joint=True)) == pytest.approx([0.8 * 0.5**0.3] * 2)  # CLQ: the same score
    for rule in (ScoreRule(), ScoreRule(joint=False)):
        assert isinstance(rule.trained(c, None), LogScore)
        assert rule.final(c, None).log_p.exp().item() == pytest.approx(0.8)
