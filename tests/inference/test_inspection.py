"""What is behind a detection, against what the detector itself finds and against geometry."""

import clq
import numpy as np
import pytest
import torch
from clq.errors import UserError
from clq.inference.inspection import Inspection
from detectron2.structures import pairwise_iou
from PIL import Image


@pytest.fixture(scope="module")
def predictor(trained):
    return clq.load(trained)


@pytest.fixture
def inspection(predictor):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 120, (60, 90, 3), dtype=np.uint8)
    image[10:40, 20:60] = 230, 30, 30
    return Inspection(predictor, image)


def test_the_final_score_gives_the_detections_of_the_detector(predictor, inspection):
    expected, found = predictor(inspection.image).instances, inspection.detections()
    assert len(found) == len(expected) > 0
    for name, values in expected.get_fields().items():
        values, others = (getattr(x, "tensor", x) for x in (values, found.get(name)))
        torch.testing.assert_close(others, values, msg=name)
    assert torch.equal(found.final_scores, found.scores)


@pytest.mark.parametrize("ranking, field", [("class score", "cls_scores"), ("quality", "pred_quality")])
def test_another_ranking_sorts_and_suppresses_by_its_own_score(inspection, ranking, field):
    found = inspection.detections(ranking)
    assert torch.equal(found.scores, found.get(field))
    assert (found.scores.diff() <= 0).all()
    iou = pairwise_iou(found.pred_boxes, found.pred_boxes).fill_diagonal_(0)
    same = found.pred_classes[:, None] == found.pred_classes
    assert iou[same].max() <= inspection._model.selector.nms_thresh + 1e-3
    assert torch.equal(inspection.detections().scores, inspection.detections("final score").scores)  # nothing changed


def test_the_means_of_the_distributions_are_the_sides_of_the_box(inspection):
    found = inspection.detections()
    for i in range(len(found)):
        level, location = int(found.levels[i]), int(found.locations[i])
        p = inspection.distributions(level, location)
        np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
        left, top, right, bottom = p @ np.arange(p.shape[1])
        x, y = inspection.position(level, location)
        width, height = inspection.bin_width(level)
        box = np.array([x - left * width, y - top * height, x + right * width, y + bottom * height])
        height, width = inspection.image.shape[:2]
        clipped = box.clip(0, [width, height, width, height])
        np.testing.assert_allclose(found.pred_boxes.tensor[i], clipped, atol=1e-2)


def test_taps_without_offsets_are_the_regular_grid(predictor, inspection):
    """At stride 8 and an image shown at its own scale s, neighbours are 8 / s pixels apart."""
    conv = predictor.model.head.align.offsets.conv
    before = conv.weight.detach().clone()
    try:
        conv.weight.data.zero_()
        plain = Inspection(predictor, inspection.image)
    finally:
        conv.weight.data.copy_(before)
    taps, (width, height) = plain.taps(0, 3), plain.bin_width(0)
    x, y = plain.position(0, 3)
    expected = [(x + i * width, y + j * height) for j in (-1, 0, 1) for i in (-1, 0, 1)]
    assert taps.shape[1:] == (9, 2)
    for group in taps:
        np.testing.assert_allclose(group, expected, atol=1e-3)
    assert not np.allclose(inspection.taps(0, 3), taps, atol=0.01)


def test_a_detector_of_another_kind_is_named(predictor, monkeypatch):
    monkeypatch.setattr(predictor, "model", torch.nn.Identity())
    with pytest.raises(UserError, match="META_ARCHITECTURE CLQ: only detectors of CLQ"):
        Inspection(predictor, Image.new("RGB", (32, 32)))
