"""Tiles of an image, with a detector that finds every painted rectangle of which a tile shows a part."""

import clq
import numpy as np
import pytest
import torch
from clq.modeling.tiled import TiledDetector, nms_threshold
from detectron2.data.transforms import AugmentationList
from detectron2.structures import Boxes, Instances
from torch import nn


class Painted(nn.Module):
    """Finds the rectangle of each value above 0, with its value / 300 as the score, and more at the left edge."""

    def __init__(self, classes=None, left_bonus=0):
        super().__init__()
        self.classes, self.left_bonus, self.batches = classes or {}, left_bonus, []

    def forward(self, inputs):
        self.batches.append(len(inputs))
        return [{"instances": self.find(x["image"][0])} for x in inputs]

    def find(self, image):
        boxes, scores, classes = [], [], []
        for value in image.unique().tolist():
            if value:
                y, x = (image == value).nonzero(as_tuple=True)
                boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
                scores.append((value + self.left_bonus * (x.min() == 0)) / 300)
                classes.append(self.classes.get(value, 0))
        found = Instances(tuple(image.shape))
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float).reshape(-1, 4))
        found.scores, found.pred_classes = torch.tensor(scores), torch.tensor(classes, dtype=torch.int64)
        return found


def detect(image, *, size, overlap, model=None, max_detections=100, batch_size=1):
    tiled = TiledDetector(
        model or Painted(),
        AugmentationList([]),
        size=size,
        overlap=overlap,
        nms_thresh=0.6,
        max_detections=max_detections,
        batch_size=batch_size,
    )
    tensor = torch.from_numpy(np.repeat(image[None], 3, axis=0))
    (output,) = tiled.eval()([{"image": tensor, "height": image.shape[0], "width": image.shape[1]}])
    return output["instances"]


def painted(size, *boxes):
    image = np.zeros(size, np.uint8)
    for value, (x0, y0, x1, y1) in enumerate(boxes, start=1):
        image[y0:y1, x0:x1] = value
    return image


@pytest.mark.parametrize("overlap", [0.2, 0.35, 0.6])
@pytest.mark.parametrize("seed", range(4))
def test_every_object_up_to_the_overlap_is_found_once_and_whole(overlap, seed):
    rng, size = np.random.default_rng(seed), 60
    largest, cell = int(overlap * size) - 1, int(overlap * size) + 2
    height, width = (int(n) for n in rng.integers(150, 260, 2))
    boxes = []
    for y in range(0, height - cell, cell):
        for x in range(0, width - cell, cell):
            w, h = rng.integers(3, largest + 1, 2)
            left, top = x + rng.integers(0, cell - w), y + rng.integers(0, cell - h)
            boxes.append((left, top, left + w, top + h))
    boxes = boxes[:255]
    found = detect(painted((height, width), *boxes), size=size, overlap=overlap, max_detections=1000)
    assert sorted(map(tuple, found.pred_boxes.tensor.int().tolist())) == sorted(boxes)
    assert found.image_size == (height, width)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_a_part_of_what_another_tile_shows_whole_is_dropped():
    """Tiles at 0 to 100 and 70 to 170. The second finds 25 of the 55 pixels of an object, with a higher score."""
    image = painted((80, 170), (40, 20, 95, 60))
    found = detect(image, size=100, overlap=0.3, model=Painted(left_bonus=100))
    assert found.scores.tolist() == pytest.approx([1 / 300])
    assert found.pred_boxes.tensor.tolist() == [[40, 20, 95, 60]]


def test_what_no_tile_shows_whole_is_found_in_parts():
    found = detect(painted((80, 170), (60, 20, 120, 60)), size=100, overlap=0.3)
    assert sorted(found.pred_boxes.tensor.tolist()) == [[60, 20, 100, 60], [70, 20, 120, 60]]


def test_nms_is_by_class():
    """Two rectangles of the same place, in two classes: the inner one leaves a rim of the outer one."""
    image = painted((50, 50), (10, 10, 40, 40), (11, 11, 39, 39))
    wide = np.concatenate([image, np.zeros_like(image)], axis=1)
    assert len(detect(wide, size=60, overlap=0.2)) == 1
    assert len(detect(wide, size=60, overlap=0.2, model=Painted({2: 1}))) == 2


def test_batches_of_tiles_and_the_best_detections():
    image = painted((100, 100), *((x, y, x + 8, y + 8) for x in range(0, 100, 10) for y in range(0, 100, 10)))
    model = Painted()
    found = detect(image, size=40, overlap=0.2, model=model, batch_size=4, max_detections=7)
    assert model.batches == [4, 4, 1]
    assert (found.scores * 300).round().int().tolist() == [100, 99, 98, 97, 96, 95, 94]


def test_an_image_without_anything():
    assert len(detect(np.zeros((100, 100), np.uint8), size=40, overlap=0.2)) == 0


@pytest.mark.parametrize(
    "name, key",
    [
        ("CLQ", "CLQ.NMS_THRESH"),
        ("RetinaNet", "RETINANET.NMS_THRESH_TEST"),
        ("FCOS", "RETINANET.NMS_THRESH_TEST"),
        ("GeneralizedRCNN", "ROI_HEADS.NMS_THRESH_TEST"),
    ],
)
def test_the_threshold_of_nms_is_that_of_the_meta_architecture(name, key):
    cfg = clq.setup_cfg(None, ["MODEL.META_ARCHITECTURE", name, f"MODEL.{key}", 0.37])
    assert nms_threshold(cfg) == 0.37
