"""Properties of all box coders: round trips, monotonic sides, and finite boxes and gradients for any prediction."""

import hypothesis
import pytest
import torch
from clq.modeling.box_coding import DeltaCoder, DistributionCoder, LinearDistanceCoder, LogDistanceCoder
from detectron2.modeling.box_regression import Box2BoxTransform
from hypothesis import strategies as st

REG_MAX = 16
CODERS = [DeltaCoder(), LogDistanceCoder(), LinearDistanceCoder(), DistributionCoder(REG_MAX)]
every_coder = pytest.mark.parametrize("coder", CODERS, ids=lambda coder: type(coder).__name__)
STRIDES = st.sampled_from([8.0, 16.0, 32.0, 64.0, 128.0])
EXTREME = st.sampled_from([-1e4, -1e3, -88.0, -1.0, 0.0, 1.0, 88.0, 1e3, 1e4]) | st.floats(-1e4, 1e4, width=32)


@st.composite
def anchors_of_boxes(draw):
    """A stride, an anchor of 8 strides, and a box with its centre inside, whose sides are 1/8 to 15 strides away."""
    stride = draw(STRIDES)
    center = torch.tensor([draw(st.integers(0, 2000)) / 4 for _ in range(2)])
    ltrb = torch.tensor([draw(st.integers(2, 240)) / 16 for _ in range(4)]) * stride
    anchor = torch.cat((center - 4 * stride, center + 4 * stride))
    return stride, anchor, torch.cat((center - ltrb[:2], center + ltrb[2:])), ltrb


def encode(coder, stride, anchor, box, ltrb):
    """The prediction from which a coder should decode a box."""
    if isinstance(coder, DeltaCoder):
        return Box2BoxTransform(coder.weights).get_deltas(anchor[None], box[None])[0]
    if isinstance(coder, LogDistanceCoder):
        return (ltrb / (8 * stride)).log()
    if isinstance(coder, LinearDistanceCoder):
        return ltrb / stride
    near = (1 - (ltrb[:, None] / stride - torch.arange(REG_MAX + 1)).abs()).clamp(min=0)  # the two bins beside it
    return near.log().clamp(min=-1e4).flatten()


@every_coder
@hypothesis.given(anchors_of_boxes())
def test_decoding_inverts_encoding(coder, scene):
    stride, anchor, box, ltrb = scene
    found = coder.decode(encode(coder, stride, anchor, box, ltrb), anchor, stride)
    torch.testing.assert_close(found, box, atol=1e-3, rtol=1e-5)


@every_coder
@hypothesis.given(anchors_of_boxes(), st.integers(0, 3), st.integers(1, 15))
def test_a_larger_prediction_moves_its_side_outwards(coder, scene, side, more):
    """For deltas: a larger shift moves both sides, a larger size both apart."""
    stride, anchor, box, ltrb = scene
    pred = encode(coder, stride, anchor, box, ltrb)
    changed = pred.clone()
    if isinstance(coder, DistributionCoder):
        changed = changed.view(4, -1)
        changed[side, REG_MAX] = torch.logsumexp(changed[side], 0) + more - 8  # a share for the last bin
    else:
        changed[side] += more / 8
    moved = (coder.decode(changed.flatten(), anchor, stride) - box) * torch.tensor([-1.0, -1, 1, 1])
    if isinstance(coder, DeltaCoder):
        axis = side % 2
        sign = torch.tensor([-1.0, 1.0] if side < 2 else [1.0, 1.0])
        assert (moved[[axis, axis + 2]] * sign > 0).all()
        still = [1 - axis, 3 - axis]
    else:
        assert moved[side] > 0
        still = [i for i in range(4) if i != side]
    assert moved[still].abs().max() <= 2e-3


@every_coder
@hypothesis.given(st.lists(EXTREME, min_size=4, max_size=4), STRIDES, st.sampled_from([torch.float32, torch.bfloat16]))
def test_any_prediction_gives_a_finite_box_with_finite_gradients(coder, values, stride, dtype):
    pred = torch.tensor(values).repeat_interleave(coder.num_channels // 4).to(dtype)
    pred = (pred * torch.linspace(1, -1, coder.num_channels)).to(dtype).requires_grad_()
    anchor = torch.tensor([-4.0, -4, 4, 4]) * stride
    with torch.autocast("cpu", torch.bfloat16):
        box = coder.decode(coder.activate(pred), anchor, stride)
    box.sum().backward()
    assert box.dtype == torch.float32
    assert box.isfinite().all()
    assert pred.grad.isfinite().all()
    if not isinstance(coder, LinearDistanceCoder):  # whose refinement may turn a box inside out
        assert (box[2:] >= box[:2]).all()


@hypothesis.given(st.lists(EXTREME, min_size=4 * (REG_MAX + 1), max_size=4 * (REG_MAX + 1)), anchors_of_boxes())
def test_the_loss_of_distributions_is_finite_with_finite_gradients(values, scene):
    stride, anchor, box, _ = scene
    pred = torch.tensor([values], requires_grad=True)
    losses = DistributionCoder(REG_MAX).auxiliary_loss(pred, box[None], anchor[None], torch.tensor([stride]))
    losses["loss_dfl"].sum().backward()
    assert losses["loss_dfl"].isfinite().all() and (losses["loss_dfl"] >= 0).all()
    assert pred.grad.isfinite().all()
