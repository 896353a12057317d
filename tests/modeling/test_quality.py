import pytest
import torch
from clq.modeling.quality import Centerness, PredictedIoU, box_iou_matched, centerness
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
    target = Centerness().target(around(0, 0), GT, around(x, y, 64.0))
    torch.testing.assert_close(target, torch.tensor([expected]))


def test_centerness_multiplies_at_test_only_and_without_exponent():
    assert (Centerness.joint, Centerness.alpha) == (False, 1.0)
    assert (PredictedIoU(0.3).joint, PredictedIoU(0.3).alpha) == (True, 0.3)


def test_predicted_iou_learns_the_iou_of_the_decoded_box_or_of_the_anchor():
    pred = torch.tensor([[0.0, 0, 10, 10]], requires_grad=True)  # IoU 100/200
    anchor = torch.tensor([[5.0, 0, 15, 20]])  # 100/300
    target = PredictedIoU().target(pred, GT, anchor)
    torch.testing.assert_close(target, torch.tensor([0.5]))
    assert not target.requires_grad
    torch.testing.assert_close(PredictedIoU(of="anchor").target(pred, GT, anchor), torch.tensor([1 / 3]))


def test_matched_iou_is_the_diagonal():
    torch.manual_seed(0)
    corner, size = torch.rand(2, 40, 2) * 50, torch.rand(2, 40, 2) * 50 + 1
    a, b = torch.cat((corner, corner + size), -1)
    torch.testing.assert_close(box_iou_matched(a, b), box_iou(a, b).diagonal())
    assert box_iou_matched(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize(("alpha", "of"), [(0.0, "pred_box"), (-0.3, "anchor"), (0.3, "box")])
def test_wrong_settings(alpha, of):
    with pytest.raises(ValueError, match="must be positive" if of != "box" else "pred_box or anchor, not box"):
        PredictedIoU(alpha, of)
