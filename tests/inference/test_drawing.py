"""Boxes and labels of pictures: where they are, in which colours, and that they can be told from any background."""

import numpy as np
import pytest
from clq.inference.drawing import Label, class_color, draw_boxes


def drawn(boxes, classes=None, labels=None, size=(300, 400), background=128):
    image = np.full((*size, 3), background, np.uint8)
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    classes = classes or [0] * len(boxes)
    return np.asarray(draw_boxes(image, boxes, classes, labels or [Label("cat", ("0.50",))] * len(boxes)))


@pytest.mark.parametrize("background", [0, 255, class_color(0)])
def test_a_box_differs_from_any_background(background):
    picture, flat = drawn([(100, 100, 300, 250)], background=background), np.zeros((300, 400, 3)) + background
    for y, x in ((slice(98, 103), 200), (slice(247, 252), 200), (180, slice(98, 103)), (180, slice(297, 302))):
        assert (np.abs(picture[y, x].astype(int) - flat[y, x]).max(axis=-1) > 100).any()
    assert (picture[110:240, 110:290] == flat[110:240, 110:290]).all()  # nothing is drawn inside


def test_the_image_itself_is_unchanged_and_without_boxes_so_is_the_picture():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    before = image.copy()
    draw_boxes(image, np.array([[5, 5, 30, 30]], np.float32), [1], [Label("a")])
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(draw_boxes(image[:, :, ::-1], np.zeros((0, 4)), [], []), image[:, :, ::-1])


def test_classes_have_colours_of_their_own():
    colors = np.array([class_color(i) for i in range(20)]).astype(int)
    apart = np.abs(colors[:, None] - colors[None]).max(axis=2) + 255 * np.eye(20, dtype=int)
    assert apart.min() >= 20
    picture = drawn([(20, 60, 80, 120), (220, 60, 280, 120)], classes=[0, 1])
    assert tuple(picture[90, 20]) == class_color(0) and tuple(picture[90, 220]) == class_color(1)


def label_pixels(picture, color):
    """Rows and columns of a label: its colour is filled, while edges are thin."""
    mask = (picture == color).all(axis=2)
    rows, columns = mask.sum(axis=1) > 20, mask.sum(axis=0) > 5
    return np.flatnonzero(rows), np.flatnonzero(columns)


def test_a_label_is_above_its_box_or_within_the_image_where_there_is_no_room():
    low, high = drawn([(100, 100, 300, 250)]), drawn([(100, 0, 300, 250)])
    assert label_pixels(low, class_color(0))[0].min() < 95
    assert label_pixels(high, class_color(0))[0].min() < 10
    right = drawn([(390, 100, 399, 120)])
    assert label_pixels(right, class_color(0))[1].min() < 380


def test_labels_of_boxes_in_one_place_do_not_cover_each_other():
    boxes = [(100, 100, 300, 250), (102, 101, 302, 251)]
    apart = drawn(boxes, classes=[0, 1])
    for color in (class_color(0), class_color(1)):
        alone = drawn(boxes[:1], classes=[0 if color == class_color(0) else 1])
        assert (apart == color).all(axis=2).sum() > 0.6 * (alone == color).all(axis=2).sum()


def test_details_are_left_out_where_the_box_is_too_small():
    label = Label("cat", ("0.50", "IoU 0.75"))
    assert label.versions() == ["cat 0.50 IoU 0.75", "cat 0.50"]
    assert Label("", ("0.50",)).versions() == ["0.50"] and Label("cat").versions() == ["cat"]
    wide, narrow = (drawn([(50, 100, x, 250)], labels=[label]) for x in (350, 60))
    widths = [np.ptp(label_pixels(p, class_color(0))[1][:]) for p in (wide[:99], narrow[:99])]
    assert widths[1] < 0.7 * widths[0]


@pytest.mark.parametrize("box", [(-50, -50, 900, 900), (399.6, 299.6, 400, 300), (0, 0, 0.2, 0.2), (399, 0, 400, 300)])
def test_boxes_at_the_edges(box):
    assert (drawn([box]) != 128).any()


def test_an_image_smaller_than_a_label():
    assert drawn([(0, 0, 3, 2)], size=(2, 3)).shape == (2, 3, 3)
    assert drawn([(0, 0, 1, 1)], size=(1, 1)).shape == (1, 1, 3)
