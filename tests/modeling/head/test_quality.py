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
    box_iou_matched,
    centerness,
)
from torchvision.ops import box_iou

GT = torch.tensor([[0.0, 0, 10, 20]])


def around(x, y, size=4.0):
    return torch.tensor([[x - size / 2, y - size / 2, x + size / 2, y + size / 2]])


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (5, 10, 1.0),
        (2, 10, 0.5),  # l = 2, r = 8
        (8, 10, 0.5),
        (2, 4, 0.25),  # and t = 4, b = 16
        (5, 19.8, (0.2 / 19.8) ** 0.5),
    ],
)
def test_centerness_by_hand(x, y, expected):
    torch.testing.assert_close(centerness(around(x, y), GT), torch.tensor([expected]))
    # It is the anchor's centre that counts, not its size, nor the predicted box.
    target = CenternessQuality().target(around(0, 0), GT, around(x, y, 64.0))
    torch.testing.assert_close(target, torch.tensor([expected]))


def test_centerness_multiplies_at_test_only_and_without_exponent():
    assert (CenternessQuality.joint, CenternessQuality.alpha) == (False, 1.0)
    assert (IoUQuality(0.3).joint, IoUQuality(0.3).alpha) == (True, 0.3)


def test_predicted_iou_learns_the_iou_of_the_decoded_box():
    pred = torch.tensor([[0.0, 0, 10, 10]], requires_grad=True)  # IoU 100/200
    anchor = torch.tensor([[5.0, 0, 15, 20]])  # 100/300
    target = IoUQuality().target(pred, GT, anchor)
    torch.testing.assert_close(target, torch.tensor([0.5]))
    assert not target.requires_grad


def test_matched_iou_is_the_diagonal():
    torch.manual_seed(0)
    corner, size = torch.rand(2, 40, 2) * 50, torch.rand(2, 40, 2) * 50 + 1
    a, b = torch.cat((corner, corner + size), -1)
    torch.testing.assert_close(box_iou_matched(a, b), box_iou(a, b).diagonal())
    assert box_iou_matched(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize(("alpha", "tower", "said"), [(0.0, "cls", "be positive"), (-0.3, "reg", "be positive")])
def test_wrong_settings(alpha, tower, said):
    with pytest.raises(ValueError, match=said):
        IoUQuality(alpha, tower)


@pytest.mark.parametrize(
    ("quality", "tower"), [(IoUQuality(), "cls"), (IoUQuality(0.3, "reg"), "reg"), (CenternessQuality(), "reg")]
)
def test_which_tower_the_branch_reads(quality, tower):
    torch.manual_seed(0)
    branch = quality.branch(DeltaCoder(), 8, 6)
    towers = {"cls": torch.randn(2, 6, 3, 4), "reg": torch.randn(2, 6, 3, 4)}
    expected = torch.nn.functional.conv2d(towers[tower], branch.weight, branch.bias, padding=1)
    torch.testing.assert_close(branch(torch.randn(2, 8, 3, 4), **towers, box_pred=None), expected)


def test_distribution_quality_by_hand():
    """Logits log 1 ... log 5 give probabilities 1/15 ... 5/15: the four largest are 5, 4, 3, 2 fifteenths, mean 3.5."""
    branch = DGQPBranch(DistributionCoder(4), 32, 32, hidden=3)
    first, _, second = branch
    with torch.no_grad():
        first.weight.zero_()
        first.weight[0, 5:10, 0, 0] = torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0])  # of the second side: top
        first.weight[1] = -1.0  # cut off by the ReLU
        second.weight.fill_(15.0)
        first.bias.zero_(), second.bias.fill_(0.5)
    pred = torch.zeros(1, 20, 2, 1)
    pred[0, 5:10, 1, 0] = torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0]).log()
    logits = branch(None, None, None, pred)
    assert logits.shape == (1, 1, 2, 1)
    uniform = 3 * 11111  # each of the four, and their mean, is 3/15
    expected = [uniform + 0.5, 5 + 40 + 300 + 2000 + 35000 + 0.5]
    assert logits.flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_distribution_quality_learns_through_the_distributions():
    torch.manual_seed(0)
    branch = DGQPBranch(DistributionCoder(7), 32, 32)
    pred = torch.randn(2, 32, 3, 4, requires_grad=True)
    branch(None, None, None, pred).sum().backward()
    assert pred.grad.abs().amax(dim=(0, 2, 3)).gt(0).sum() > 16  # not detached: sharpening a side raises its quality
    assert (DGQPQuality.joint, DGQPQuality.alpha, DGQPQuality.target) == (True, 1.0, None)


@pytest.mark.parametrize("coder, why", [(DeltaCoder(), "box coding distribution"), (DistributionCoder(2), "3 bins")])
def test_distribution_quality_needs_distributions(coder, why):
    with pytest.raises(ValueError, match=why):
        DGQPBranch(coder, 32, 32)


def test_the_probability_map_reads_all_layers_and_starts_at_the_prior():
    torch.manual_seed(0)
    quality = TOODQuality(0.2)
    assert (quality.joint, quality.alpha, quality.cls_alpha, quality.target) == (True, 0.5, 0.5, None)
    branch = quality.branch(DeltaCoder(), 96, 32)
    assert isinstance(branch, ProbabilityMapBranch)
    out = branch(torch.randn(2, 96, 3, 4), None, None, None)
    torch.testing.assert_close(out.sigmoid(), torch.full((2, 1, 3, 4), 0.2), atol=0.01, rtol=0)
