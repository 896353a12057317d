"""Whole detectors on ground truths of any shape: points, lines, boxes outside of the image, boxes of the same place."""

import hypothesis
import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import strategies as st
from tiny_detectors import build, sample

SIZE = 64, 96
POSITIONS = st.sampled_from([0, 8, 16, 32, 64]) | st.integers(-20, 120)  # the first are those of anchors' centres
SIDES = st.sampled_from([0, 0, 1, 64]) | st.integers(0, 200)
BOX = st.tuples(POSITIONS, POSITIONS, SIDES, SIDES).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@pytest.fixture(scope="module", params=["clq", "vfnet", "tood", "simota", "max_iou", "atss_simota"])
def model(request):
    if request.param == "atss_simota":  # trains the centerness at locations that may lie outside of the ground truth
        return build("atss", "MODEL.CLQ.ASSIGN.NAME", "simota")
    return build(request.param)


@hypothesis.settings(max_examples=8)
@hypothesis.given(boxes=st.lists(BOX, max_size=4), empty=st.booleans())
def test_losses_and_gradients_are_finite_for_any_boxes(model, boxes, empty):
    items = [sample(SIZE, boxes)] + [sample(SIZE)] * empty
    losses = model(items)
    for name, loss in losses.items():
        assert loss.isfinite(), name
    model.zero_grad()
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_a_point_on_an_anchors_centre_trains_the_centerness(model):
    """Where the ground truth is a point, both of its distances to the centre are 0."""
    instances = Instances(SIZE, gt_boxes=Boxes(torch.tensor([[32.0, 32, 32, 32]])), gt_classes=torch.tensor([0]))
    losses = model([{"image": torch.zeros(3, *SIZE), "instances": instances}])
    assert all(loss.isfinite() for loss in losses.values())
