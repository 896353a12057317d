"""The SVG over the picture, and the page's plot."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clq.app.distributions import draw_distributions
from clq.app.overlay import draw_boxes, draw_taps, numbers
from detectron2.structures import Boxes, Instances


@pytest.fixture
def found():
    found = Instances((50, 100))
    found.pred_boxes = Boxes(torch.tensor([[10.0, 10.0, 20.0, 20.0], [0.0, 0.0, 40.0, 50.0]]))
    found.pred_classes = torch.tensor([1, 0])
    found.final_scores = found.scores = torch.tensor([0.75, 0.5])
    found.cls_scores, found.pred_quality = torch.tensor([0.875, 0.5]), torch.tensor([0.625, 1.0])
    return found


def test_boxes_lie_small_over_large_and_carry_their_numbers(found):
    svg = draw_boxes(found, ["cat & <dog>", "mouse"], "predicted IoU", selected=0)
    assert re.findall(r'data-index="(\d)"', svg) == ["1", "0"]
    assert 'data-tip="mouse; score 0.750; class score 0.875; predicted IoU 0.625"' in svg
    assert 'x="10.0" y="10.0" width="10.0" height="10.0"' in svg
    assert svg.count("chosen") == 1 and svg.index("chosen") > svg.index('data-index="1"')
    assert "cat &amp; &lt;dog&gt;" in svg and "<dog>" not in svg


def test_a_detector_without_a_quality_branch_has_one_number(found):
    found.remove("cls_scores")
    found.remove("pred_quality")
    assert numbers(found, 0, "none") == {"score": 0.75}


def test_taps_have_the_colour_of_their_group():
    taps = np.arange(36.0).reshape(2, 9, 2)
    inspection = SimpleNamespace(
        image=np.zeros((300, 600, 3)), taps=lambda *_: taps, position=lambda *_: np.array([7.0, 9.0])
    )
    svg = draw_taps(inspection, 0, 0)
    assert len(set(re.findall(r'fill="(#\w+)"', svg))) == 2
    assert re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)[10] == ("20.0", "21.0")
    assert "M3.0 9.0h8.0" in svg  # the cross, with arms of two radii, 600 / 300 each


def test_a_plot_has_the_mean_of_each_side_in_pixels():
    p = np.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.25, 0.5, 0.25]])
    figure = draw_distributions(p, np.array([8.0, 4.0]))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["left: 4.0 px", "top: 4.0 px", "right: 16.0 px", "bottom: 4.0 px"]
