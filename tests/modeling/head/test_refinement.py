import pytest
import torch
from clq.modeling.head.feature_alignment import BACKENDS
from clq.modeling.head.refinement import SampledBoxes, StarRefinement, sample_each_channel
from torch.nn import functional as F
from torchvision.ops import deform_conv2d


def boxes_like(features, *box):
    """The same box (x1, y1, x2, y2), in cells relative to its location, at every location."""
    n, _, h, w = features.shape
    return torch.tensor(box, dtype=features.dtype).view(1, 4, 1, 1).expand(n, 4, h, w)


@pytest.mark.parametrize("backend", BACKENDS)
def test_star_refinement_against_torchvision(backend):
    """The same box everywhere: torchvision's op aligns both towers, and the log distances get a scaled correction."""
    torch.manual_seed(0)
    refine = StarRefinement(4, num_levels=2, backend=backend)
    cls, reg, box_pred = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6, requires_grad=True)
    with torch.no_grad():
        refine.scales.copy_(torch.tensor([1.0, 3.0]))
    x1, y1, x2, y2 = -1.5, -2.0, 2.5, 1.0
    taps = [(y, x) for y in (y1, 0.0, y2) for x in (x1, 0.0, x2)]
    regular = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    flat = [a - b for tap, at in zip(taps, regular, strict=True) for a, b in zip(tap, at, strict=True)]
    offsets = torch.tensor(flat).view(1, 18, 1, 1).expand(2, 18, 5, 6)
    aligned = deform_conv2d(reg, offsets, refine.reg_align.conv.weight, padding=1).relu()
    expected = box_pred + 3 * F.conv2d(aligned, refine.box_pred.weight, refine.box_pred.bias, padding=1)
    found_cls, found = refine(
        level=1, feature=None, cls=cls, reg=reg, box_pred=box_pred, boxes=boxes_like(cls, x1, y1, x2, y2)
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    expected_cls = deform_conv2d(cls, offsets, refine.cls_align.conv.weight, padding=1).relu()
    torch.testing.assert_close(found_cls, expected_cls, atol=1e-4, rtol=1e-4)
    found.sum().backward()
    assert box_pred.grad is None  # the refinement does not train what it refines


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 4)])
@pytest.mark.parametrize("spread", [0.7, 10.0])
def test_channels_are_sampled_as_by_a_deformable_convolution_with_one_offset_group_for_each(size, spread):
    torch.manual_seed(0)
    x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    offsets = (torch.randn(2, 8, *size, dtype=torch.float64) * spread).requires_grad_()
    pull = torch.randn(2, 4, *size, dtype=torch.float64)
    expected = deform_conv2d(x, offsets, torch.ones(4, 1, 1, 1, dtype=torch.float64))
    found = sample_each_channel(x, offsets)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    for ours, theirs in zip(
        *(torch.autograd.grad((y * pull).sum(), (x, offsets)) for y in (found, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def make_sampler(*offsets):
    """A sampling that reads the four sides at these (dy, dx) from every location."""
    sampler = SampledBoxes(32, 32)
    with torch.no_grad():
        sampler.offsets[2].weight.zero_()
        sampler.offsets[2].bias.copy_(torch.tensor(offsets).flatten())
    return sampler


def sampled(sampler, box_pred):
    """The refined distances ltrb (4, H, W) of distances (4, H, W)."""
    left, top, right, bottom = box_pred
    boxes = torch.stack((-left, -top, right, bottom)).unsqueeze(0)
    h, w = boxes.shape[2:]
    cls = torch.randn(1, 32, h, w)
    same, out = sampler(
        level=0, feature=torch.randn(1, 32, h, w), cls=cls, reg=None, box_pred=box_pred.unsqueeze(0), boxes=boxes
    )
    assert same is cls
    return out[0].detach()


def test_a_side_is_read_where_its_offset_points():
    """Locations one cell apart that agree on an object: reading any side at a neighbour changes nothing.

    The object spans columns 2 to 7 and rows 1 to 5 of a map of 8 by 10. Then one location predicts another right side.
    """
    rows, cols = torch.meshgrid(torch.arange(8.0), torch.arange(10.0), indexing="ij")
    distances = torch.stack((cols - 2, rows - 1, 7 - cols, 5 - rows))
    found = sampled(make_sampler((0.0, 1), (1.0, 0), (0.0, -1), (-1.0, 0)), distances)
    torch.testing.assert_close(found[:, 1:-1, 1:-1], distances[:, 1:-1, 1:-1], atol=1e-5, rtol=0)
    distances[2, 3, 3] = 2.0  # location (3, 3) sees the right side at column 5
    found = sampled(make_sampler((0.0, 0), (0.0, 0), (0.0, -1), (0.0, 0)), distances)
    assert found[:, 3, 4].tolist() == pytest.approx([2, 2, 1, 2], abs=1e-5)  # its right neighbour takes that over
    assert found[2, 3, 3].item() == pytest.approx(4, abs=1e-5)


def test_a_box_whose_sides_would_cross_stays_as_it_was():
    """Left sides read 1000 cells away are the zero outside the map. In column 0 that lies right of the right side."""
    distances = torch.full((4, 1, 3), 0.5)
    distances[2, 0, 0] = -0.25  # right side at -0.25
    found = sampled(make_sampler((0.0, 1000), (0.0, 0), (0.0, 0), (0.0, 0)), distances)
    assert found[:, 0, 0].tolist() == [0.5, 0.5, -0.25, 0.5]  # 0 is right of -0.25
    assert found[0, 0].tolist() == pytest.approx([0.5, 1, 2])  # column 0, seen from columns 1 and 2


def test_at_initialization_it_hardly_moves_a_side_and_every_parameter_learns():
    torch.manual_seed(0)
    sampler, pred = SampledBoxes(64, 32), torch.rand(1, 4, 6, 6, requires_grad=True)
    boxes = torch.cat((-pred[:, :2], pred[:, 2:]), 1)
    _, out = sampler(level=0, feature=torch.randn(1, 64, 6, 6), cls=None, reg=None, box_pred=pred, boxes=boxes)
    torch.testing.assert_close(out, pred, atol=0.01, rtol=0)
    out.sum().backward()
    assert pred.grad.abs().sum() > 0
    assert all(p.grad.any() for p in sampler.parameters())
