"""Pictures have boxes, colours and labels where they should, and scenes are resized and cropped with their boxes."""

import clq  # noqa: F401  (first, because it makes Detectron2 importable)
import numpy as np
import pytest
import torch
from clq.inference.visualization import (
    GROUND_TRUTH,
    MARGIN,
    Scene,
    compare,
    crop,
    draw_detections,
    populated_window,
)
from detectron2.structures import Boxes, Instances

GREY = np.full((600, 500, 3), 100, np.uint8)


def truth(*boxes, classes=None):
    out = Instances((600, 500))
    out.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float).reshape(-1, 4))
    out.gt_classes = torch.tensor(classes or [0] * len(boxes))
    return out


def found(*boxes, scores=(), classes=None):
    out = Instances((600, 500))
    out.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float).reshape(-1, 4))
    out.scores = torch.tensor(scores, dtype=torch.float)
    out.pred_classes = torch.tensor(classes or [0] * len(boxes))
    return out


def panels(picture, width, height):
    """The two images in a picture, without captions and margins."""
    pixels = np.asarray(picture)[-MARGIN - height : -MARGIN]
    return pixels[:, MARGIN : MARGIN + width], pixels[:, 2 * MARGIN + width : -MARGIN]


def test_one_class_is_outlined_on_both_sides():
    scene = Scene(GREY, truth((100, 50, 200, 150)), found((300, 50, 400, 150), (10, 400, 60, 500), scores=(0.8, 0.3)))
    left, right = panels(compare(scene, ["tree"], 0.3), 500, 600)
    for y, x in ((50, 120), (150, 120), (100, 100), (100, 200)):  # the four edges
        assert tuple(left[y, x]) == GROUND_TRUTH
    assert (left[60:140, 110:190] == 100).all() and (left[:, 300:] == 100).all()
    best, least = right[50, 350].astype(int), right[400, 30].astype(int)
    assert tuple(best) == (240, 249, 33)  # the best score has the last colour of plasma
    assert best.sum() > least.sum() and best[1] > least[1]  # one is yellow, the other pink
    assert (right[:, :5] == 100).all() and (right[:300, 100:250] == 100).all()


def test_several_classes_have_labels_and_a_colour_each():
    boxes = (100, 100, 300, 250), (100, 350, 300, 500)
    scene = Scene(GREY, truth(*boxes, classes=[0, 1]), found(*boxes, scores=(0.9, 0.8), classes=[0, 1]))
    left, right = panels(compare(scene, ["red", "blue"], 0.3), 500, 600)
    for side in (left, right):
        one, other = side[250, 250].astype(int), side[500, 250].astype(int)  # on the lower edges of the boxes
        assert np.abs(one - 100).max() > 50 and np.abs(other - 100).max() > 50
        assert np.abs(one - other).max() > 50
    assert (left != right).any()  # only the labels of detections have a score


@pytest.mark.parametrize("names", [["tree"], ["red", "blue"]])
def test_without_boxes_the_image_is_unchanged(names):
    left, right = panels(compare(Scene(GREY, truth(), found()), names, 0.3), 500, 600)
    assert (left == 100).all() and (right == 100).all()


@pytest.mark.parametrize(
    ("size", "panel"),
    [((100, 60), (400, 240)), ((240, 160), (480, 320)), ((600, 500), (600, 500)), ((3200, 640), (3000, 600))],
)
def test_small_images_are_enlarged_and_large_ones_reduced(size, panel):
    image, (height, width) = np.full((*size, 3), 100, np.uint8), panel
    x, y, h = size[1] // 4, size[0] // 4, size[0] // 2
    picture = compare(Scene(image, truth((x, y, size[1] // 2, y + h)), found()), ["tree"], 0.3)
    assert picture.width == 2 * width + 3 * MARGIN
    left, _ = panels(picture, width, height)
    assert tuple(left[height // 2, width // 4]) == GROUND_TRUTH  # the box is resized with the image


def test_labels_of_one_class_are_shorter():
    boxes = [(100, 300, 400, 500)]
    one, two = (draw_detections(GREY, found(*boxes, scores=[0.5]), names) for names in (["tree"], ["tree", "bush"]))
    black = [(x < 50).all(axis=2).sum() for x in (one, two)]  # pixels of the background of the text
    assert 0 < black[0] < 0.7 * black[1]


def test_the_window_has_the_most_centres_and_stays_in_the_image():
    crowd = np.array([[400 + i, 300 + i, 410 + i, 310 + i] for i in range(0, 60, 10)], float)
    x0, y0, x1, y1 = populated_window(np.concatenate([crowd, [[0, 0, 10, 10]]]), (600, 500), 100)
    assert (x1 - x0, y1 - y0) == (100, 100)
    assert x0 <= 405 and x1 > 455 and y0 <= 305 and y1 > 355
    assert populated_window(np.zeros((0, 4)), (600, 500), 100) == (200, 250, 300, 350)
    assert populated_window(crowd, (600, 500), 900) == (0, 0, 500, 600)


def test_crop_keeps_the_boxes_whose_centres_are_in_the_window():
    scene = Scene(GREY, truth((90, 90, 130, 130), (300, 300, 320, 320)), found((150, 150, 260, 160), scores=[0.5]))
    part = crop(scene, (100, 100, 300, 250))
    assert part.image.shape == (150, 200, 3)
    assert part.truth.gt_boxes.tensor.tolist() == [[0, 0, 30, 30]]  # clipped; the centre of the other is outside
    assert part.detections.pred_boxes.tensor.tolist() == [[50, 50, 160, 60]]
    assert scene.truth.gt_boxes.tensor[0].tolist() == [90, 90, 130, 130]  # the scene itself is unchanged
