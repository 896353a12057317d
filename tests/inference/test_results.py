"""A result in the forms that programs take, with values worked out by hand."""

import io

import numpy as np
import pytest
import torch
from clq.data.categories import Categories
from clq.errors import UserError
from clq.inference.drawing import class_color
from clq.inference.results import Result
from detectron2.structures import Boxes, Instances
from PIL import Image

CATEGORIES = Categories((3, 7), ("cat", "dog"))


def result(quality_name="iou", with_quality=True):
    found = Instances((40, 60))
    found.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 11.0, 22.0], [5.0, 5.0, 35.0, 15.0]]))
    found.scores, found.pred_classes = torch.tensor([0.75, 0.25]), torch.tensor([1, 0])
    if with_quality:
        found.cls_scores, found.pred_quality = torch.tensor([0.875, 0.5]), torch.tensor([0.625, 0.125])
    return Result(np.zeros((40, 60, 3), np.uint8), found, CATEGORIES, quality_name=quality_name, path="a.png")


def test_arrays():
    found = result()
    assert found.boxes.tolist() == [[1, 2, 11, 22], [5, 5, 35, 15]] and found.boxes.dtype == np.float32
    assert found.scores.tolist() == [0.75, 0.25]
    assert found.labels.tolist() == [1, 0] and found.names == ["dog", "cat"]
    assert found.cls_scores.tolist() == [0.875, 0.5]
    assert found.predicted_iou.tolist() == [0.625, 0.125]
    assert len(found) == 2 and repr(found) == "<Result a.png: 1 dog, 1 cat>"


def test_without_a_quality_branch_there_are_no_factors():
    found = result(with_quality=False)
    assert found.cls_scores is None and found.predicted_iou is None
    assert result(quality_name="centerness").predicted_iou is None
    assert repr(found.above(1)) == "<Result a.png: nothing>"


@pytest.mark.parametrize(
    "quality_name, with_quality, factors",
    [
        ("none", False, {}),
        ("iou", True, {"cls_score": 0.875, "predicted_iou": 0.625}),
        ("centerness", True, {"cls_score": 0.875, "centerness": 0.625}),
        ("dgqp", True, {"cls_score": 0.875, "quality": 0.625}),
    ],
)
def test_coco_results(quality_name, with_quality, factors):
    first = result(quality_name, with_quality).to_coco(image_id=4)[0]
    plain = {"image_id": 4, "file_name": "a.png", "category_id": 7, "category_name": "dog", "score": 0.75}
    assert first == {**plain, "bbox": [1, 2, 10, 20], **factors}


def test_a_threshold_keeps_the_detections_from_it_on():
    assert result().above(0.75).names == ["dog"] and len(result().above(0.76)) == 0 and len(result().above(0)) == 2


def test_the_picture_has_the_boxes_above_the_threshold():
    drawn, both = (np.asarray(result().draw(threshold=t)) for t in (0.5, 0))
    assert drawn.shape == (40, 60, 3)
    cat, dog = class_color(0), class_color(1)
    assert (drawn[20, 1] == dog).all()  # the left side of the first box
    assert not (drawn == cat).all(axis=2).any() and (both == cat).all(axis=2).any()
    png = Image.open(io.BytesIO(result()._repr_png_()))
    np.testing.assert_array_equal(np.asarray(png), np.asarray(result().draw()))


def test_supervision_gets_boxes_names_and_factors(monkeypatch):
    class Detections:
        def __init__(self, **fields):
            self.fields = fields

    import sys
    import types

    monkeypatch.setitem(sys.modules, "supervision", types.SimpleNamespace(Detections=Detections))
    fields = result().to_supervision().fields
    assert fields["xyxy"].tolist() == [[1, 2, 11, 22], [5, 5, 35, 15]] and fields["confidence"].tolist() == [0.75, 0.25]
    assert fields["class_id"].tolist() == [1, 0] and fields["data"]["class_name"].tolist() == ["dog", "cat"]
    assert fields["data"]["predicted_iou"].tolist() == [0.625, 0.125]
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="needs the package supervision; pip install supervision"):
        result().to_supervision()
