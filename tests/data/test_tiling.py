"""Tiles and their boxes, worked out by hand."""

from itertools import pairwise

import numpy as np
import pytest
from clq.data.tiling import boxes_in_window, split_at, tile_starts, visible_fraction


@pytest.mark.parametrize(
    "length, starts",
    [
        (300, [0]),  # shorter than a tile
        (400, [0]),
        (401, [0, 1]),
        (700, [0, 300]),  # exactly one step
        (701, [0, 150, 301]),  # (0 + 301) / 2 = 150.5, rounded to even
        (1540, [0, 285, 570, 855, 1140]),
    ],
)
def test_tile_starts_by_hand(length, starts):
    assert tile_starts(length, 400, 0.25) == starts


@pytest.mark.parametrize("length", range(395, 2500, 97))
def test_tiles_cover_the_image_and_overlap_by_a_quarter(length):
    starts = tile_starts(length, 400, 0.25)
    assert starts[0] == 0 and starts[-1] + 400 >= length
    assert all(b - a <= 300 for a, b in pairwise(starts))


def test_a_box_across_the_line_is_on_neither_side():
    boxes = np.array([[10, 0, 100, 5], [100, 0, 120, 5], [99, 0, 101, 5], [0, 0, 99, 5]], dtype=float)
    left, right = split_at(boxes, 100)
    assert left.tolist() == [[10, 0, 100, 5], [0, 0, 99, 5]]  # a box that touches the line does not cross it
    assert right.tolist() == [[100, 0, 120, 5]]


def test_boxes_are_clipped_to_the_tile_or_dropped():
    window = (100, 200, 200, 300)
    boxes = np.array(
        [
            [120, 220, 140, 250],  # inside
            [90, 210, 130, 220],  # 30 of 40 columns are inside: 0.75
            [80, 280, 120, 320],  # half of each side is inside: 0.25, just enough
            [70, 280, 120, 320],  # 20/50 * 20/40 = 0.2, too little
            [50, 200, 100, 250],  # touches the tile from outside
            [0, 0, 400, 400],  # 100 * 100 of 160,000 pixels, too little
        ],
        dtype=float,
    )
    assert boxes_in_window(boxes, window, 0.25).tolist() == [[20, 20, 40, 50], [0, 10, 30, 20], [0, 80, 20, 100]]


def test_visible_fraction_of_boxes_without_area_is_zero():
    _, visible = visible_fraction(np.array([[5.0, 5, 5, 9], [9, 5, 5, 9]]), (0, 0, 10, 10))
    assert visible.tolist() == [0, 0]


def test_a_tile_without_boxes():
    assert boxes_in_window(np.zeros((0, 4)), (0, 0, 10, 10), 0.25).shape == (0, 4)
