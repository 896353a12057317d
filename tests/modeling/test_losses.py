import math

import pytest
import torch
from clq.modeling.losses import (
    centerness,
    distribution_focal_loss,
    focal_loss,
    giou_loss,
    matched_iou,
    quality_focal_loss,
    varifocal_loss,
)
from clq.modeling.scoring import joint_score
from clq.modeling.structures import LogScore
from fvcore.nn import sigmoid_focal_loss
from torchvision.ops import box_iou, generalized_box_iou_loss

LN2 = math.log(2)


def score_of(*probabilities):
    p = torch.tensor(probabilities)
    return LogScore(p.log(), (1 - p).log())


def test_quality_focal_loss_by_hand():
    """|y - p|^beta times the binary cross entropy, without reduction."""
    loss = quality_focal_loss(score_of(0.5, 0.5, 0.5, 0.5, 0.2), torch.tensor([0.0, 1.0, 0.5, 0.75, 1.0]))
    expected = [0.25 * LN2, 0.25 * LN2, 0.0, LN2 / 16, 0.64 * math.log(5)]
    torch.testing.assert_close(loss, torch.tensor(expected))
    loss = quality_focal_loss(score_of(0.5, 0.2), torch.tensor([0.0, 1.0]), beta=1.0)
    torch.testing.assert_close(loss, torch.tensor([0.5 * LN2, 0.8 * math.log(5)]))


def test_quality_focal_loss_does_not_detach_its_modulating_factor():
    """d/dc of sigmoid(c)^2 softplus(c) at 0: 2 (1/2) (1/4) ln 2 + (1/4) (1/2); with the factor detached 1/8 alone."""
    c = torch.zeros(1, requires_grad=True)
    quality_focal_loss(joint_score(c, None), torch.zeros(1)).backward()
    torch.testing.assert_close(c.grad, torch.tensor([0.25 * LN2 + 0.125]))


@pytest.mark.parametrize("beta", [1.0, 2.0, 2.5])
def test_quality_focal_loss_gradcheck(beta):
    torch.manual_seed(0)
    c, q = (torch.randn(8, k, dtype=torch.float64, requires_grad=True) for k in (3, 1))
    target = torch.rand(8, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda c, q: quality_focal_loss(joint_score(c, q, 0.3), target, beta), (c, q))


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.75, 1.5), (0.5, 0.0)])
def test_focal_loss_equals_fvcore(alpha, gamma):
    torch.manual_seed(0)
    ours = (torch.randn(200, 3) * 5).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    target = (torch.rand(200, 3) < 0.3).float()
    loss = focal_loss(joint_score(ours, None), target, alpha, gamma)
    expected = sigmoid_focal_loss(theirs, target, alpha, gamma)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=3e-7)
    for x in (loss, expected):
        x.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=3e-7)


def test_focal_loss_by_hand():
    """p = 1/4: as a positive 1/4 (3/4)^2 ln 4, as a negative 3/4 (1/4)^2 ln(4/3)."""
    loss = focal_loss(score_of(0.25, 0.25), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(loss, torch.tensor([9 / 64 * math.log(4), 3 / 64 * math.log(4 / 3)]))


@pytest.mark.parametrize("function", [quality_focal_loss, focal_loss, varifocal_loss])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_extreme_scores_are_finite(function, target):
    c = torch.tensor([-120.0, -100, -90, -20, 0, 20, 90, 100, 120], requires_grad=True)
    loss = function(joint_score(c, None), torch.full((9,), target))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert c.grad.isfinite().all()
    wrong = loss[0 if target else -1].item()  # linear in the logit, as the cross entropy is
    weights = {quality_focal_loss: (1, 1), focal_loss: (0.75, 0.25), varifocal_loss: (0.75, 1)}
    assert wrong == pytest.approx(120 * weights[function][int(target)])


def test_varifocal_loss_by_hand():
    """At p = 1/4 the cross entropy has the factor 1/2, the target, for a positive and alpha p^gamma for a negative."""
    p = torch.tensor([0.25, 0.25])
    loss = varifocal_loss(LogScore(p.log(), (1 - p).log()), torch.tensor([0.5, 0.0]))
    cross_entropy = -0.5 * math.log(0.25) - 0.5 * math.log(0.75)
    assert loss.tolist() == pytest.approx([0.5 * cross_entropy, -0.75 * 0.25**2 * math.log(0.75)])


def test_varifocal_loss_gradcheck():
    logits = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.tensor([0.0, 0.3, 1.0] * 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: varifocal_loss(joint_score(x, None), target), (logits,))


def test_distribution_focal_loss_by_hand():
    """The bins 0 to 3 have 1/10 to 4/10; targets at 0, at an integer, between two bins, and at the last bin."""
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log() + 7  # a constant changes nothing
    targets = torch.tensor([0.0, 2.0, 1.25, 2.9, 3.0])
    nll = [-math.log(p) for p in (0.1, 0.2, 0.3, 0.4)]
    expected = [nll[0], nll[2], 0.75 * nll[1] + 0.25 * nll[2], 0.1 * nll[2] + 0.9 * nll[3], nll[3]]
    torch.testing.assert_close(distribution_focal_loss(logits.expand(5, 4), targets), torch.tensor(expected))


def test_distribution_focal_loss_is_least_where_the_two_bins_hold_the_target():
    """With the probabilities 0.3 and 0.7 for the bins 1 and 2, whose mean is the target, the gradient is zero."""
    logits = torch.tensor([[-60.0, math.log(0.3), math.log(0.7), -60.0]], requires_grad=True)
    distribution_focal_loss(logits, torch.tensor([1.7])).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(1, 4), atol=1e-6, rtol=0)


def test_distribution_focal_loss_gradcheck_and_extremes():
    torch.manual_seed(0)
    logits = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    target = torch.rand(12, dtype=torch.float64) * 4
    assert torch.autograd.gradcheck(lambda x: distribution_focal_loss(x, target), (logits,))
    for dtype in (torch.float16, torch.bfloat16):
        wild = torch.tensor([[-1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
        loss = distribution_focal_loss(wild, torch.tensor([0.0]))
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(2e4, rel=1e-2)
        assert wild.grad.isfinite().all()
    empty = distribution_focal_loss(torch.zeros(0, 5), torch.zeros(0))
    assert empty.shape == (0,)


def test_giou_loss_by_hand():
    """Equal boxes; half of one; two with a gap between them; a point inside; two equal points."""
    one = [0.0, 0.0, 2.0, 2.0]
    boxes = torch.tensor([one, [0, 0, 1, 2], [4, 0, 6, 2], [1, 1, 1, 1], [3, 3, 3, 3]])
    targets = torch.tensor([one, one, one, one, [3, 3, 3, 3]])
    torch.testing.assert_close(giou_loss(boxes, targets), torch.tensor([0.0, 0.5, 1 + 4 / 12, 1.0, 1.0]))


def test_giou_loss_equals_torchvision_and_is_smooth():
    torch.manual_seed(0)
    corner, size = torch.rand(2, 300, 2, dtype=torch.float64) * 5, torch.rand(2, 300, 2, dtype=torch.float64) * 8 + 0.1
    boxes, target = torch.cat((corner, corner + size), dim=-1)
    assert 20 < (giou_loss(boxes, target) > 1).sum() < 280  # some do not overlap
    torch.testing.assert_close(giou_loss(boxes, target), generalized_box_iou_loss(boxes, target), rtol=0, atol=1e-5)
    assert torch.autograd.gradcheck(lambda x: giou_loss(x, target[:40]), (boxes[:40].requires_grad_(),))


def test_giou_loss_of_boxes_without_area_and_in_half_precision():
    boxes = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 5], [5, 5, 2, 2]]).bfloat16().requires_grad_()
    loss = giou_loss(boxes, torch.tensor([[1.0, 1, 1, 1], [0, 0, 4, 4], [0, 0, 4, 4]]))
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert boxes.grad.isfinite().all()
    assert giou_loss(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_matched_iou_is_the_diagonal_of_all_ious():
    torch.manual_seed(0)
    corner, size = torch.rand(2, 40, 2) * 50, torch.rand(2, 40, 2) * 50 + 1
    a, b = torch.cat((corner, corner + size), -1)
    torch.testing.assert_close(matched_iou(a, b), box_iou(a, b).diagonal())
    assert not matched_iou(a.requires_grad_(), b).requires_grad
    assert matched_iou(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (5, 10, 1.0),
        (2, 10, 0.5),  # l = 2, r = 8
        (8, 10, 0.5),
        (2, 4, 0.25),  # and t = 4, b = 16
        (5, 19.8, (0.2 / 19.8) ** 0.5),
        (0, 10, 0.0),  # on the border
        (-2, 10, 0.0),  # outside, as an assigner other than ATSS may match it
        (-2, 25, 0.0),  # outside in both directions, whose ratios have a positive product
    ],
)
def test_centerness_by_hand(x, y, expected):
    """The ground truth is 10 wide and 20 high. The anchor's centre counts and not its size."""
    for half in (2.0, 32.0):
        anchor = torch.tensor([[x - half, y - half, x + half, y + half]])
        found = centerness(anchor, torch.tensor([[0.0, 0, 10, 20]]))
        torch.testing.assert_close(found, torch.tensor([expected]))
