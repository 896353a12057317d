import pytest
import torch
from clq.modeling.box_coding import DeltaCoder, DistributionCoder
from clq.modeling.head.quality import (
    CenternessQuality,
    DGQPBranch,
    DGQPQuality,
    IoUQuality,
    ProbabilityMapBranch,
    TOODQuality,
)

GT = torch.tensor([[0.0, 0, 10, 20]])


def test_centerness_is_that_of_the_anchor_and_not_of_the_predicted_box():
    """The anchor's centre lies at a quarter of the ground truth's width and in the middle of its height."""
    anchor, predicted = torch.tensor([[0.5, 6, 4.5, 14]]), torch.tensor([[0.0, 0, 10, 20]])
    torch.testing.assert_close(CenternessQuality().target(predicted, GT, anchor), torch.tensor([(1 / 3) ** 0.5]))


def test_centerness_multiplies_at_test_only_and_without_exponent():
    assert (CenternessQuality.joint, CenternessQuality.alpha) == (False, 1.0)
    assert (IoUQuality(0.3).joint, IoUQuality(0.3).alpha) == (True, 0.3)


def test_predicted_iou_learns_the_iou_of_the_decoded_box():
    pred = torch.tensor([[0.0, 0, 10, 10]], requires_grad=True)  # IoU 100/200
    anchor = torch.tensor([[5.0, 0, 15, 20]])  # 100/300
    target = IoUQuality().target(pred, GT, anchor)
    torch.testing.assert_close(target, torch.tensor([0.5]))
    assert not target.requires_grad


@pytest.mark.parametrize(("alpha", "tower"), [(0.0, "cls"), (-0.3, "reg"), (float("inf"), "cls")])
def test_an_exponent_that_is_not_positive_and_finite_is_refused(alpha, tower):
    with pytest.raises(ValueError, match="must be positive and finite"):
        IoUQuality(alpha, tower)


@pytest.mark.parametrize(
    ("quality", "tower"), [(IoUQuality(), "cls"), (IoUQuality(0.3, "reg"), "reg"), (CenternessQuality(), "reg")]
)
def test_the_convolution_reads_the_tower_of_its_quality(quality, tower):
    torch.manual_seed(0)
    branch, x = quality.branch(DeltaCoder(), 8, 6), torch.randn(2, 6, 3, 4)
    assert branch.reads == tower
    torch.testing.assert_close(branch(x), torch.nn.functional.conv2d(x, branch.weight, branch.bias, padding=1))


def test_distribution_quality_by_hand():
    """Logits log 1 ... log 5 give probabilities 1/15 ... 5/15: the four largest are 5, 4, 3, 2 fifteenths, mean 3.5."""
    branch = DGQPBranch(DistributionCoder(4), hidden=3)
    assert branch.reads == "box_pred"
    first, _, second = branch
    with torch.no_grad():
        first.weight.zero_()
        first.weight[0, 5:10, 0, 0] = torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0])  # of the second side: top
        first.weight[1] = -1.0  # cut off by the ReLU
        second.weight.fill_(15.0)
        first.bias.zero_(), second.bias.fill_(0.5)
    pred = torch.zeros(1, 20, 2, 1)
    pred[0, 5:10, 1, 0] = torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0]).log()
    logits = branch(pred)
    assert logits.shape == (1, 1, 2, 1)
    uniform = 3 * 11111  # each of the four, and their mean, is 3/15
    expected = [uniform + 0.5, 5 + 40 + 300 + 2000 + 35000 + 0.5]
    assert logits.flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_distribution_quality_learns_through_the_distributions():
    torch.manual_seed(0)
    branch = DGQPBranch(DistributionCoder(7))
    pred = torch.randn(2, 32, 3, 4, requires_grad=True)
    branch(pred).sum().backward()
    assert pred.grad.abs().amax(dim=(0, 2, 3)).gt(0).sum() > 16  # not detached: sharpening a side raises its quality
    assert (DGQPQuality.joint, DGQPQuality.alpha, DGQPQuality.target) == (True, 1.0, None)


@pytest.mark.parametrize("coder, why", [(DeltaCoder(), "box coding distribution"), (DistributionCoder(2), "3 bins")])
def test_distribution_quality_needs_distributions(coder, why):
    with pytest.raises(ValueError, match=why):
        DGQPBranch(coder)


def test_the_probability_map_reads_all_layers_and_starts_at_the_prior():
    torch.manual_seed(0)
    quality = TOODQuality(0.2)
    assert (quality.joint, quality.alpha, quality.cls_alpha, quality.target) == (True, 0.5, 0.5, None)
    branch = quality.branch(DeltaCoder(), 96, 32)
    assert isinstance(branch, ProbabilityMapBranch)
    assert branch.reads == "feature"
    out = branch(torch.randn(2, 96, 3, 4))
    torch.testing.assert_close(out.sigmoid(), torch.full((2, 1, 3, 4), 0.2), atol=0.01, rtol=0)
