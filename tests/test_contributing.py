"""The examples of CONTRIBUTING.md work as they are written there."""

import re
from pathlib import Path

import pytest
import torch
from clq.modeling.assign.base import Assignment, AssignmentInputs
from clq.modeling.box_coding import DeltaCoder
from clq.modeling.head.quality import ConvQualityBranch, Quality
from clq.modeling.losses import giou_loss
from clq.modeling.scoring import ScoreRule
from clq.modeling.structures import FlatPredictions

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
NAMES = {
    "Assignment": Assignment,
    "AssignmentInputs": AssignmentInputs,
    "ConvQualityBranch": ConvQualityBranch,
    "Quality": Quality,
    "giou_loss": giou_loss,
    "torch": torch,
}


def example(name):
    """The class of this name, from the Python example that defines it."""
    (code,) = (c for c in re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S) if f"class {name}" in c)
    namespace = dict(NAMES)
    exec(code, namespace)
    return namespace[name]


def test_quality_learns_the_giou_of_the_box():
    quality = example("GIoUQuality")()
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 16]])
    assert quality.target(boxes, boxes[[0, 0]], boxes).tolist() == pytest.approx([1.0, 0.75])  # GIoU 1 and 1/2
    assert quality.joint
    assert quality.branch(DeltaCoder(), 8, 6)(torch.zeros(1, 6, 4, 4)).shape == (1, 1, 4, 4)


def test_assigner_takes_the_nearest_locations():
    """Four anchors along a line, the last on padding: the two nearest to a centre at 25 are those at 20 and 10."""
    centers = torch.tensor([10.0, 20, 60, 28])
    inputs = AssignmentInputs(
        grid_sizes=[(1, 4)],
        strides=[8],
        anchors=torch.stack((centers - 4, torch.zeros(4), centers + 4, torch.full((4,), 8.0)), dim=1),
        location_strides=torch.full((4,), 8.0),
        valid_sizes=torch.tensor([[[1, 3]]]),
        valid=torch.tensor([[True, True, True, False]]),
        gt_boxes=[torch.tensor([[20.0, 0, 30, 8]])],
        gt_classes=[torch.tensor([0])],
        predictions=FlatPredictions(torch.zeros(1, 4, 1), torch.zeros(1, 4, 4), None),
        coder=DeltaCoder(),
        score=ScoreRule(),
    )
    assignment = example("NearestAssigner")(2)(inputs)
    assert assignment.matched_idxs.tolist() == [[0, 0, -1, -1]]
    assert assignment.max_positives == 2
