import math

import pytest
import torch
from clq.modeling.box_coding import DeltaCoder, DistributionCoder, LinearDistanceCoder, LogDistanceCoder, unit_anchor
from detectron2.modeling.box_regression import Box2BoxTransform

MAX = 1000 / 16  # the largest factor by which a side may grow or shrink


def test_delta_decode_by_hand():
    """An anchor 40 wide and 20 high around (100, 50), shifted by (1/4, -1/2) of its sides; one doubles, one halves."""
    anchor = torch.tensor([80.0, 40, 120, 60])
    deltas = torch.tensor([2.5, -5, 5 * math.log(2), -5 * math.log(2)])
    # centre (110, 40), size (80, 10)
    torch.testing.assert_close(DeltaCoder().decode(deltas, anchor, 8.0), torch.tensor([70.0, 35, 150, 45]))
    plain = DeltaCoder((1.0, 1.0, 1.0, 1.0)).decode(deltas / torch.tensor([10.0, 10, 5, 5]), anchor, 8.0)
    torch.testing.assert_close(plain, torch.tensor([70.0, 35, 150, 45]))
    assert DeltaCoder.num_channels == 4


def test_delta_growth_and_shrinkage_are_clamped_alike():
    anchor, deltas = torch.tensor([-4.0, -4, 4, 4]), torch.zeros(2, 4)
    deltas[0, 2], deltas[0, 3], deltas[1, 2], deltas[1, 3] = 1e4, -1e4, 5 * math.log(60), -5 * math.log(60)
    x1, y1, x2, y2 = DeltaCoder().decode(deltas, anchor, 1.0).unbind(-1)
    torch.testing.assert_close(x2 - x1, torch.tensor([8 * MAX, 8 * 60]))
    torch.testing.assert_close(y2 - y1, torch.tensor([8 / MAX, 8 / 60]))


@pytest.mark.parametrize("weights", [(10.0, 10.0, 5.0, 5.0), (1.0, 2.0, 3.0, 4.0)])
def test_delta_agrees_with_detectron2_and_inverts_its_deltas(weights):
    torch.manual_seed(0)
    anchors, boxes = (torch.rand(2, 200, 2) * 500 for _ in range(2))
    anchors, boxes = (torch.cat((x[0], x[0] + 10 + x[1]), -1) for x in (anchors, boxes))
    coder, theirs = DeltaCoder(weights), Box2BoxTransform(weights)
    deltas = torch.randn(200, 4)
    expected = theirs.apply_deltas(deltas, anchors)
    torch.testing.assert_close(coder.decode(deltas, anchors, 8.0), expected, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(coder.decode(theirs.get_deltas(anchors, boxes), anchors, 8.0), boxes, atol=1e-3, rtol=0)


def test_log_distances_by_hand():
    """An anchor 64 wide around (100, 50): at exp(0) = 1 each side lies 64 pixels from the centre."""
    coder, anchor = LogDistanceCoder(), torch.tensor([68.0, 18, 132, 82])
    torch.testing.assert_close(coder.decode(torch.zeros(4), anchor, 8.0), torch.tensor([36.0, -14, 164, 114]))
    pred = torch.tensor([0.5, 2.0, 0.25, 1.0]).log()
    box = torch.tensor([68.0, -78, 116, 114])
    torch.testing.assert_close(coder.decode(pred, anchor, 8.0), box)
    far = coder.decode(torch.tensor([1e4, -1e4, 1e4, -1e4]), anchor, 8.0)
    torch.testing.assert_close(far, torch.tensor([100 - 4000.0, 50, 4100, 50]))  # at most 62.5 anchors


def test_linear_distances_by_hand():
    """1, 2 and 3 strides of 8 pixels from (100, 50), and a bottom side above the centre."""
    coder, anchor = LinearDistanceCoder(), torch.tensor([68.0, 18, 132, 82])
    pred, box = torch.tensor([1.0, 2, 3, -0.5]), torch.tensor([92.0, 34, 124, 46])
    torch.testing.assert_close(coder.decode(pred, anchor, 8.0), box)


def test_only_linear_distances_are_activated():
    """They are the exponential of the head's output, up to 62.5 anchors of 8 strides."""
    raw = torch.tensor([0.0, math.log(3), -1e4, 1e4])
    torch.testing.assert_close(LinearDistanceCoder().activate(raw), torch.tensor([1.0, 3, 0, 500]))
    for other in (DeltaCoder(), LogDistanceCoder(), DistributionCoder()):
        assert other.activate(raw) is raw


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activated_distances_are_float32_under_autocast(dtype):
    """From the value that half precision holds; its exponential in half precision would be off by up to 1 in 256."""
    raw = torch.linspace(-3, 6, 50).to(dtype)
    with torch.autocast("cpu", dtype):
        distances = LinearDistanceCoder().activate(raw)
    assert distances.dtype == torch.float32
    torch.testing.assert_close(distances.double(), raw.double().exp(), rtol=1e-6, atol=0)


def test_distribution_decode_by_hand():
    """Probability 1 for the bins 1, 2 and 16, and 1/2 each for 4 and 5, at stride 8 around (100, 50)."""
    coder, anchor = DistributionCoder(16), torch.tensor([68.0, 18, 132, 82])
    assert coder.num_channels == 68
    logits = torch.full((4, 17), -1e4)
    for side, bins in enumerate(((1,), (2,), (4, 5), (16,))):
        logits[side, list(bins)] = 0.0
    box = coder.decode(logits.flatten(), anchor, torch.tensor(8.0))
    torch.testing.assert_close(box, torch.tensor([100 - 8.0, 50 - 16, 100 + 36, 50 + 128]))
    # Equal logits: the mean of 0 ... 16.
    torch.testing.assert_close(coder.decode(torch.zeros(68), anchor, 1.0), torch.tensor([92.0, 42, 108, 58]))


@pytest.mark.parametrize(
    ("box", "stride", "ltrb"),
    [
        ([-12.0, -8.4, 20, 127], 8.0, [1.5, 1.05, 2.5, 15.875]),
        ([-200.0, 8, 8, 8], 8.0, [15.9, 0, 1, 1]),  # beyond the last bin, and a side beyond the centre
        ([-8.0, -8, 8, 8], 16.0, [0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_the_loss_of_distributions_is_least_at_the_distances_of_the_box(box, stride, ltrb):
    """Each side's two neighbouring bins hold its distance in strides, clamped to their range: there is no gradient."""
    coder, anchors = DistributionCoder(16), torch.tensor([[-32.0, -32, 32, 32]])
    probabilities = (1 - (torch.tensor(ltrb).unsqueeze(-1) - torch.arange(17)).abs()).clamp(min=0)
    logits = probabilities.log().clamp(min=-1e4).flatten().unsqueeze(0).requires_grad_()
    loss = coder.auxiliary_loss(logits, torch.tensor([box]), anchors, torch.tensor([stride]))["loss_dfl"]
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(1, 68), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "coder",
    [DeltaCoder(), LogDistanceCoder(), LinearDistanceCoder(), DistributionCoder(16)],
    ids=["delta", "distance", "ltrb", "distribution"],
)
class TestEveryCoder:
    def test_any_layout_decodes_like_its_flat_form(self, coder):
        torch.manual_seed(0)
        pred, corner, strides = (
            torch.randn(2, 3, 5, coder.num_channels),
            torch.rand(3, 5, 2) * 300,
            torch.rand(3, 5) * 30,
        )
        anchors = torch.cat((corner, corner + 64), -1)
        flat = [
            coder.decode(pred[i, j, k], anchors[j, k], strides[j, k])
            for i in range(2)
            for j in range(3)
            for k in range(5)
        ]
        torch.testing.assert_close(coder.decode(pred, anchors, strides), torch.stack(flat).view(2, 3, 5, 4))

    def test_units_are_those_of_the_anchor(self, coder):
        """The unit anchor at stride 1 gives the box in strides relative to its location."""
        torch.manual_seed(0)
        pred, stride, center = torch.randn(6, coder.num_channels), 16.0, torch.tensor([32.0, 48.0])
        anchor = torch.cat((center - 64, center + 64))
        relative = coder.decode(pred, unit_anchor(8.0), 1.0)
        torch.testing.assert_close(
            relative * stride + center.repeat(2), coder.decode(pred, anchor, torch.tensor(stride))
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_boxes_are_float32_under_autocast(self, coder, dtype):
        """In bfloat16 the side of a box at 1,000 pixels would be off by up to 2 pixels."""
        torch.manual_seed(0)
        pred = (torch.randn(50, coder.num_channels) * 3).to(dtype)
        anchors, stride = torch.tensor([[0.0, 0, 800, 800]]), 100.0  # no power of two, whose products are exact
        expected = coder.decode(pred.double(), anchors.double(), stride).float()
        with torch.autocast("cpu", dtype):
            for x in (pred, pred.float()):
                for strides in (stride, torch.tensor([stride])):
                    boxes = coder.decode(x, anchors, strides)
                    assert boxes.dtype == torch.float32
                    torch.testing.assert_close(boxes, expected, atol=1e-3, rtol=1e-5)

    def test_no_boxes(self, coder):
        empty = coder.decode(torch.zeros(0, coder.num_channels), torch.zeros(0, 4), torch.zeros(0))
        assert empty.shape == (0, 4)
        for loss in coder.auxiliary_loss(
            torch.zeros(0, coder.num_channels), torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0)
        ).values():
            assert loss.shape == (0,)


def test_auxiliary_losses():
    """Deltas have none. A distribution has DFL, averaged over the sides: log(n + 1) for one that is uniform."""
    anchors, boxes = torch.tensor([[-32.0, -32, 32, 32]]), torch.tensor([[-12.0, -8.4, 20, 127]])
    assert DeltaCoder().auxiliary_loss(torch.zeros(1, 4), boxes, anchors, torch.tensor([8.0])) == {}
    pred = torch.zeros(1, 4, 17)
    pred[0, 3] = torch.tensor([0.0] * 15 + [math.log(0.2), math.log(0.8)])  # bins 15 and 16 of the bottom; 15 others: 1
    losses = DistributionCoder(16).auxiliary_loss(pred.flatten(1), boxes, anchors, torch.tensor([8.0]))
    bottom = math.log(16) - 0.125 * math.log(0.2) - 0.875 * math.log(0.8)  # the target is 15.875
    assert losses.keys() == {"loss_dfl"}
    torch.testing.assert_close(losses["loss_dfl"], torch.tensor([(3 * math.log(17) + bottom) / 4]))


def test_unit_anchor():
    assert unit_anchor(5.0).tolist() == [-2.5, -2.5, 2.5, 2.5]
