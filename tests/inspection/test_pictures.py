import numpy as np
import pytest
from clq.inspection.pictures import GAP, LEVELS, MARKED, contact_sheet, draw_view, picture_name
from clq.inspection.training_view import Positives, View
from PIL import Image


def view(*, boxes=((40, 40, 80, 80),), positives=None):
    boxes = np.array(boxes, float).reshape(-1, 4)
    return View("a.png", np.zeros((100, 200, 3), np.uint8), boxes, np.zeros(len(boxes), int), positives)


def test_boxes_and_positives_are_drawn_where_they_are():
    positives = Positives(np.array([[60.0, 60.0]]), np.array([1]), np.array([0]))
    drawn = np.asarray(draw_view(view(positives=positives), ["cat"], 400))  # twice as large
    assert drawn.shape == (200, 400, 3)
    assert drawn[120, 120].tolist() == list(LEVELS[1])
    edge, label = drawn[120, 80], drawn[75, 81]
    assert edge.max() == 255 and edge.tolist() == label.tolist()
    assert not drawn[120, 100].any() and not drawn[30, 300].any()


def test_marked_boxes_are_red_even_beyond_the_image():
    drawn = np.asarray(draw_view(view(boxes=()), ["cat"], 200, marked=np.array([[150.0, 20, 260, 60]])))
    assert drawn[40, 150].tolist() == drawn[40, 199].tolist() == list(MARKED)


def test_captions_and_the_legend_are_below_the_image():
    plain, below = (draw_view(view(), ["cat"], 400, captions=c, levels=c) for c in ([], ["p3"]))
    assert below.width == plain.width and below.height > plain.height
    assert np.array_equal(np.asarray(below)[: plain.height], np.asarray(plain))
    text = np.asarray(below)[plain.height :]
    assert text.min() < 50 and text.max() == 255


def test_a_long_caption_does_not_widen_the_picture():
    assert draw_view(view(), ["cat"], 100, captions=["word " * 100]).width == 100


@pytest.mark.parametrize("shape", [(1, 300, 3), (300, 1, 3)])
def test_thin_images_are_drawn(shape):
    thin = View("a.png", np.zeros(shape, np.uint8), np.array([[0.0, 0, 1, 1]]), np.array([0]), None)
    assert max(draw_view(thin, ["cat"], 100).size) == 100


def test_a_sheet_holds_all_pictures_in_rows():
    pictures = [Image.new("RGB", size, "red") for size in [(50, 30), (40, 20), (50, 10)]]
    sheet = contact_sheet(pictures, 2, ())
    assert sheet.size == (2 * 50 + 3 * GAP, 30 + 10 + 3 * GAP)
    red = (np.asarray(sheet) == (255, 0, 0)).all(axis=-1)
    assert red.sum() == 50 * 30 + 40 * 20 + 50 * 10


def test_names_of_pictures_keep_their_order():
    assert picture_name(7, "/data/photos/cat.1.jpeg") == "007_cat.1.jpg"
