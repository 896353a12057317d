"""Tiles and their boxes, worked out by hand."""

from itertools import pairwise

import clq
import numpy as np
import pytest
from clq.data.tiling import (
    boxes_in_window,
    check_tiles,
    cut_tile,
    split_at,
    tile_records,
    tile_starts,
    tile_windows,
    visible_fraction,
)
from clq.errors import UserError
from detectron2.structures import BoxMode


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


def tile_cfg(size, overlap=0.0, **values):
    cfg = clq.setup_cfg(None, ["DATASETS.TILE.SIZE", size, "DATASETS.TILE.OVERLAP", overlap])
    for path, value in values.items():
        cfg.merge_from_list([path.replace("__", "."), value])
    return cfg


def record(size, *boxes):
    """A record whose boxes are XYWH, as COCO's are; every box has a class of its own."""
    annotations = [{"bbox": list(b), "bbox_mode": BoxMode.XYWH_ABS, "category_id": i} for i, b in enumerate(boxes)]
    return {"file_name": "a.png", "image_id": 7, "height": size[0], "width": size[1], "annotations": annotations}


def test_windows_are_row_by_row():
    assert tile_windows((50, 90), 50, 0.2) == [(0, 0, 50, 50), (40, 0, 90, 50)]
    assert tile_windows((60, 40), 40, 0.0) == [(0, 0, 40, 40), (0, 20, 40, 60)]


def test_a_record_for_each_tile_with_what_it_shows():
    whole = record((40, 80), (10, 10, 20, 20), (35, 0, 10, 10), (38, 20, 12, 10))
    whole["annotations"].append({**whole["annotations"][0], "iscrowd": 1})
    left, right = tile_records([whole], tile_cfg(40))
    assert [(t["tile"], t["image_size"], t["height"], t["width"], t["image_id"]) for t in (left, right)] == [
        ((0, 0, 40, 40), (40, 80), 40, 40, 7),
        ((40, 0, 80, 40), (40, 80), 40, 40, 7),
    ]
    boxes = [[(a["category_id"], a["bbox"]) for a in t["annotations"]] for t in (left, right)]
    # Half of the second box is in either tile; a sixth of the third one is in the left tile, where it is left out.
    assert boxes == [[(0, [10, 10, 30, 30]), (1, [35, 0, 40, 10])], [(1, [0, 0, 5, 10]), (2, [0, 20, 10, 30])]]
    assert all(a["bbox_mode"] == BoxMode.XYXY_ABS for t in (left, right) for a in t["annotations"])


def test_tiles_without_objects_are_left_out_like_images_without_objects():
    images = [record((40, 80), (1, 1, 8, 8)), record((40, 40), (1, 1, 8, 8))]
    some = tile_records(images, tile_cfg(40))
    assert [r.get("tile") for r in some] == [(0, 0, 40, 40), None] and some[1] is images[1]
    assert len(tile_records(images, tile_cfg(40, DATALOADER__FILTER_EMPTY_ANNOTATIONS=False))) == 3


def test_the_pixels_of_a_tile():
    image = np.arange(40 * 80 * 3).reshape(40, 80, 3)
    tile = tile_records([record((40, 80), (50, 1, 8, 8))], tile_cfg(40))[0]
    np.testing.assert_array_equal(cut_tile(tile, image), image[:, 40:])
    assert cut_tile(record((40, 80)), image) is image
    with pytest.raises(ValueError, match=r"a\.png: has 80 x 39 pixels, but the data set says 80 x 40"):
        cut_tile(tile, image[:39])


@pytest.mark.parametrize(
    "values, message",
    [
        ({"DATASETS__TILE__SIZE": -1}, "must be at least 0"),
        ({"DATASETS__TILE__OVERLAP": 0.95}, "must be between 0 and 0.9"),
        ({"MODEL__MASK_ON": True}, "cannot be combined with MODEL.MASK_ON"),
        ({"TEST__AUG__ENABLED": True}, "cannot be combined with TEST.AUG.ENABLED"),
    ],
)
def test_mistakes_in_the_config(values, message):
    with pytest.raises(UserError) as e:
        check_tiles(tile_cfg(64, **values))
    assert message in str(e.value)
