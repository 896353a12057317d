import pytest
import torch
from clq.modeling.head import feature_alignment as alignment
from clq.modeling.head.feature_alignment import FeatureAlignment, GeometricOffsets, LearnedOffsets, StarOffsets
from torch.nn import functional as F

BACKENDS = list(alignment.BACKENDS)


def boxes_like(features, *box):
    """The same box (x1, y1, x2, y2), in cells relative to its location, at every location."""
    n, _, h, w = features.shape
    return torch.tensor(box, dtype=features.dtype).view(1, 4, 1, 1).expand(n, 4, h, w)


@pytest.fixture
def features():
    torch.manual_seed(0)
    return torch.randn(2, 3, 9, 12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("box", "dilation"),
    [
        ((-1.5, -1.5, 1.5, 1.5), (1, 1)),  # three by three cells, with the taps of a plain convolution
        ((-3.0, -3.0, 3.0, 3.0), (2, 2)),
        ((-4.5, -1.5, 4.5, 1.5), (1, 3)),  # a wide box spreads its taps along the columns
    ],
)
def test_geometric_taps_are_the_centres_of_the_nine_parts_of_the_box(features, backend, box, dilation):
    align = FeatureAlignment(3, GeometricOffsets(), backend)
    expected = F.conv2d(features, align.conv.weight, padding=dilation, dilation=dilation).relu()
    torch.testing.assert_close(align(features, boxes_like(features, *box)), expected, atol=1e-5, rtol=1e-5)
    assert (expected == 0).any()
    assert (expected > 0).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_taps_follow_the_centre_of_the_box(features, backend):
    """A box two cells right and one down gives the shifted plain convolution, with zeros outside the map."""
    align = FeatureAlignment(3, GeometricOffsets(), backend)
    plain = F.conv2d(F.pad(features, (1, 3, 1, 2)), align.conv.weight).relu()
    out = align(features, boxes_like(features, 0.5, -0.5, 3.5, 2.5))
    torch.testing.assert_close(out, plain[:, :, 1:, 2:], atol=1e-5, rtol=1e-5)
    far = align(features, boxes_like(features, 498.5, -1.5, 501.5, 1.5))
    assert not far.any()


def test_geometric_offsets_by_hand():
    """A box 12 wide and 6 high around (1, -2) has parts of 4 by 2: taps at x = -3, 1, 5 and y = -4, -2, 0."""
    offsets = GeometricOffsets()(torch.tensor([-5.0, -5, 7, 1]).view(1, 4, 1, 1)).view(3, 3, 2)
    regular = torch.tensor([-1.0, 0, 1])
    torch.testing.assert_close(offsets[..., 0] + regular[:, None], torch.tensor([-4.0, -2, 0])[:, None].expand(3, 3))
    torch.testing.assert_close(offsets[..., 1] + regular, torch.tensor([-3.0, 1, 5]).expand(3, 3))
    assert not list(GeometricOffsets().parameters())


def test_star_by_hand():
    """Taps of the box from (-5, -4) to (7, 1): the location, the corners, and the points of the sides beside it."""
    box = torch.tensor([-5.0, -4, 7, 1]).view(1, 4, 1, 1).requires_grad_()
    offsets = StarOffsets()(box).view(3, 3, 2)
    regular = torch.tensor([-1.0, 0, 1])
    torch.testing.assert_close(offsets[..., 0] + regular[:, None], torch.tensor([-4.0, 0, 1])[:, None].expand(3, 3))
    torch.testing.assert_close(offsets[..., 1] + regular, torch.tensor([-5.0, 0, 7]).expand(3, 3))
    offsets.sum().backward()
    torch.testing.assert_close(box.grad.flatten(), torch.full((4,), 0.3))  # three taps each, a tenth of the gradient


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (8, 5), (6, 6)])
@pytest.mark.parametrize("spread", [1.0, 20.0])
def test_backends_agree_in_float64_with_all_gradients(groups, size, spread):
    torch.manual_seed(0)
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    offsets = torch.randn(2, 18 * groups, *size, dtype=torch.float64) * spread
    weight, pull = torch.randn(5, 4, 3, 3, dtype=torch.float64), torch.randn(2, 5, *size, dtype=torch.float64)
    results = []
    for function in alignment.BACKENDS.values():
        args = [a.clone().requires_grad_() for a in (x, offsets, weight)]
        out = function(*args)
        results.append([out, *torch.autograd.grad((out * pull).sum(), args)])
    for one, *others in zip(*results, strict=True):
        assert one.any() or spread > 1  # far outside a small map there is nothing
        for other in others:
            torch.testing.assert_close(other, one, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_group_moves_its_own_channels(backend):
    """Two groups on six channels: the first three are convolved as they are, the last three shifted by (1, 2)."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 6, 8, 9), torch.randn(4, 6, 3, 3)
    offsets = torch.zeros(1, 2, 9, 2, 8, 9)
    offsets[:, 1, :, 0], offsets[:, 1, :, 1] = 1.0, 2.0  # dy and dx of the second group
    out = alignment.BACKENDS[backend](x, offsets.flatten(1, 3), weight)
    moved = torch.zeros_like(x)
    moved[:, :3], moved[:, 3:, :-1, :-2] = x[:, :3], x[:, 3:, 1:, 2:]
    expected = F.conv2d(moved, weight, padding=1)
    # Away from the border, beyond which the moved taps read the map and the moved map has zeros.
    torch.testing.assert_close(out[:, :, 1:-2, 1:-3], expected[:, :, 1:-2, 1:-3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_parts_give_the_result_of_the_whole(training, monkeypatch):
    """Two images of 7 x 9 in parts of 50 locations: one part has locations of both images, and the last is shorter."""
    for name in ("_SAMPLES_AT_ONCE", "_SAMPLES_AT_ONCE_IN_TRAINING"):
        monkeypatch.setattr(alignment, name, 50 * 9 * 4 + 1)
    calls, own = [], alignment._sampled_product
    monkeypatch.setattr(
        alignment, "_sampled_product", lambda table, cells, *rest: calls.append(len(cells)) or own(table, cells, *rest)
    )
    torch.manual_seed(0)
    x, offsets = torch.randn(2, 4, 7, 9, dtype=torch.float64), torch.randn(2, 36, 7, 9, dtype=torch.float64) * 3
    weight, pull = torch.randn(5, 4, 3, 3, dtype=torch.float64), torch.randn(2, 5, 7, 9, dtype=torch.float64)
    results = []
    for function in (alignment.deform_conv2d_gather, alignment.deform_conv2d_torchvision):
        args = [a.clone().requires_grad_(training) for a in (x, offsets, weight)]
        with torch.set_grad_enabled(training):
            out = function(*args)
        results.append([out, *(torch.autograd.grad((out * pull).sum(), args) if training else ())])
    assert sorted(calls) == sorted(
        [50, 50, 26] * (1 + training)
    )  # in training every part is computed again in the backward pass
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_learned_offsets_are_a_1x1_convolution_of_the_box(features):
    align = FeatureAlignment(3, LearnedOffsets(groups=1))
    assert {name: tuple(p.shape) for name, p in align.named_parameters()} == {
        "offsets.conv.weight": (18, 4, 1, 1),
        "conv.weight": (3, 3, 3, 3),
    }
    assert align.offsets(torch.zeros(2, 4, 5, 6)).shape == (2, 18, 5, 6)
    with torch.no_grad():
        align.offsets.conv.weight.zero_()
        plain = align(features, torch.randn(2, 4, 9, 12))
        align.offsets.conv.weight[0::2, 1] = 1.0  # dy of every tap: the box's y1
        align.offsets.conv.weight[1::2, 0] = 1.0  # dx: its x1
        moved = align(features, boxes_like(features, 2, 1, 9, 9))
    torch.testing.assert_close(plain, F.conv2d(features, align.conv.weight, padding=1).relu(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moved[:, :, :-2, :-3], plain[:, :, 1:-1, 2:-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("std", [0.0, 0.02, 0.1])
def test_the_initial_scale_of_learned_offsets(std):
    """A box of 16 x 16 cells moves each tap by 16 std in each direction: four sides of 8, with independent weights."""
    offsets = LearnedOffsets(groups=100, std=std)
    box = torch.tensor([-8.0, -8.0, 8.0, 8.0]).view(1, 4, 1, 1)
    assert offsets(box).square().mean().sqrt().item() == pytest.approx(16 * std, rel=0.08)  # of 1,800 weights


@pytest.mark.parametrize("gradient", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("kind", [GeometricOffsets, StarOffsets, lambda gradient: LearnedOffsets(4, gradient)])
def test_the_share_of_the_gradient_into_the_boxes(kind, gradient):
    """The share scales the gradient and does not change the offsets."""
    torch.manual_seed(0)
    shared, full = kind(gradient), kind(1.0)
    full.load_state_dict(shared.state_dict())
    box = torch.randn(2, 4, 3, 2, requires_grad=True)
    torch.testing.assert_close(shared(box), full(box))
    pull = torch.randn_like(full(box))
    (expected,), (grad,) = (torch.autograd.grad((f(box) * pull).sum(), box) for f in (full, shared))
    torch.testing.assert_close(grad, gradient * expected)
    assert expected.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offsets", [GeometricOffsets(), LearnedOffsets(groups=1)], ids=["geometric", "learned"])
def test_under_autocast_the_sampling_stays_exact(backend, offsets):
    """The centre tap reads a ramp: column 250 reads 9.625 from 240.375 cells to its left; bfloat16 would read 10."""
    align = FeatureAlignment(1, offsets, backend)
    ramp, box = torch.arange(256.0).view(1, 1, 1, 256), torch.zeros(1, 4, 1, 256)
    with torch.no_grad():
        align.conv.weight.zero_()[0, 0, 1, 1] = 1.0
        if isinstance(offsets, LearnedOffsets):
            offsets.conv.weight.zero_()[9, 0] = 1.0  # dx of the centre tap: x1
            box[0, 0] = -240.375
        else:
            box[0, 0] = box[0, 2] = -240.375
    with torch.autocast("cpu", torch.bfloat16):
        out = align(ramp.bfloat16().requires_grad_(), box)
        out.float().sum().backward()
    assert out[0, 0, 0, 250].item() == 9.625
    assert align.conv.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("channels", "groups", "expected"), [(64, 1, "gather"), (256, 4, "gather"), (128, 4, "grid_sample")]
)
def test_auto_chooses_by_the_number_of_channels_of_a_group(channels, groups, expected, monkeypatch):
    called = []
    for name, function in alignment.BACKENDS.items():
        monkeypatch.setitem(alignment.BACKENDS, name, lambda *args, n=name, f=function: called.append(n) or f(*args))
    FeatureAlignment(channels, LearnedOffsets(groups))(torch.randn(1, channels, 2, 3), torch.randn(1, 4, 2, 3))
    assert called == [expected]


def test_on_the_cpu_auto_does_not_use_torchvisions_op(features, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("torchvision's op was called")

    monkeypatch.setattr(alignment, "deform_conv2d", refuse)
    boxes = boxes_like(features, -2, -2, 2, 2)
    assert FeatureAlignment(3, GeometricOffsets())(features, boxes).shape == features.shape
    with pytest.raises(RuntimeError, match="torchvision's op was called"):
        FeatureAlignment(3, GeometricOffsets(), "torchvision")(features, boxes)
    with pytest.raises(ValueError, match="torchvision or grid_sample or gather, not cuda"):
        FeatureAlignment(3, GeometricOffsets(), "cuda")
