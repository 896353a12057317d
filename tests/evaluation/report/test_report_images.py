"""The order of images and their pictures."""

import numpy as np
import pytest
from clq.evaluation.report.images import MISSED, RIGHT, WRONG, draw_image, image_errors
from clq.evaluation.report.matching import assign
from made_runs import BOX, found, narrow, run
from PIL import Image


def test_images_by_their_error():
    objects = [(0, 0, BOX), (1, 0, BOX), (2, 0, BOX), (2, 0, [200, 0, 50, 50]), (3, 0, BOX), (5, 0, BOX, "crowd")]
    results = [
        found(0, 0, narrow(0.8), 0.9),
        found(1, 0, BOX, 0.9),
        found(2, 0, BOX, 0.9),
        found(3, 0, [200, 200, 9, 9], 0.9),
        found(3, 0, BOX, 0.2),  # below the threshold
        found(5, 0, [10, 10, 9, 9], 0.9),  # in a crowd: there is nothing to say on this image, nor on the empty 4
    ]
    made = run(objects, results, images=6)
    got = image_errors(made, assign(made, 0.5), 0.5)
    assert [e.index for e in got] == [1, 0, 2, 3]
    assert [e.error for e in got] == pytest.approx([0, 0.4, 0.5, 1])
    assert [(e.right, e.wrong, e.missed) for e in got] == [(1, 0, 0), (1, 0, 0), (1, 0, 1), (0, 1, 1)]


def test_of_equal_images_the_one_with_more_to_see_is_more_extreme():
    objects = [(i, 0, BOX) for i in range(4)] + [(i, 0, [200, 0, 50, 50]) for i in (1, 3)]
    results = [found(i, 0, BOX, 0.9) for i in (0, 1)] + [found(1, 0, [200, 0, 50, 50], 0.9)]
    made = run(objects, results, images=4)
    assert [e.index for e in image_errors(made, assign(made, 0.5), 0.5)] == [1, 0, 2, 3]


def test_a_picture_shows_what_is_right_wrong_and_missed(tmp_path):
    Image.new("RGB", (840, 420)).save(tmp_path / "0.png")
    objects = [(0, 0, [100, 100, 200, 200]), (0, 0, [500, 100, 200, 200])]
    made = run(objects, [found(0, 0, [100, 100, 200, 200], 0.9), found(0, 0, [350, 100, 100, 100], 0.8)])
    picture = draw_image(made, assign(made, 0.5), 0, 0.5, str(tmp_path))
    assert picture.size == (420, 210)  # half as large
    pixels = np.asarray(picture)
    assert tuple(pixels[149, 100]) == RIGHT and tuple(pixels[99, 200]) == WRONG and tuple(pixels[149, 336]) == MISSED
    assert "no.png" in draw_image(run([(0, 0, BOX)], []), assign(run([(0, 0, BOX)], []), 0.5), 0, 0.5, "no.png")


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "0.png").write_text("no image")
    made = run([(0, 0, BOX)], [])
    assert "0.png" in draw_image(made, assign(made, 0.5), 0, 0.5, str(tmp_path))
