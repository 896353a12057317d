"""Categories, and tiles of an image."""

import clq
import numpy as np
import pytest
from clq.data.categories import find_categories
from clq.data.images import read_image
from clq.errors import UserError
from detectron2.data import MetadataCatalog


def test_categories_of_detectron2s_own_data_sets_need_no_file():
    cfg = clq.setup_cfg(None, ["DATASETS.TEST", "['coco_2017_val']", "MODEL.CLQ.NUM_CLASSES", 80])
    categories = find_categories(cfg)
    assert (categories.ids[11], categories.names[11]) == (13, "stop sign")  # COCO has no category 12
    assert categories.ids[-1] == 90 and len(categories.names) == 80
    assert MetadataCatalog.get("coco_2017_val").get("thing_classes")[11] == "stop sign"


def test_tiles_that_do_not_overlap_are_images_of_their_own(tiny, trained):
    predictor = clq.load(trained)
    folder = tiny.replace("tiny.yaml", "shapes_val")
    images = [read_image(f"{folder}/{i}.png", "RGB") for i in range(4)]
    whole = np.concatenate([np.concatenate(images[:2], axis=1), np.concatenate(images[2:], axis=1)])
    corners = (0, 0), (96, 0), (0, 96), (96, 96)
    expected = np.concatenate(
        [
            np.column_stack([found.boxes + np.tile(corner, 2), found.scores, found.labels])
            for found, corner in zip(predictor(images), corners, strict=True)
        ]
    )
    expected = expected[np.argsort(-expected[:, 4], kind="stable")][:100]
    for batch_size in (1, 3):
        found = predictor([whole], batch_size, tile=96, overlap=0)[0]
        np.testing.assert_allclose(np.column_stack([found.boxes, found.scores, found.labels]), expected, rtol=1e-4)
    assert len(predictor(whole, tile=0)) != len(expected) or not np.allclose(predictor(whole).scores, expected[:, 4])
    one_tile, alone = predictor(images[0], tile=100), predictor(images[0])
    np.testing.assert_array_equal(one_tile.boxes, alone.boxes)


def test_a_tile_out_of_range_is_refused(trained):
    predictor = clq.load(trained)
    for options in ({"tile": -1}, {"tile": 64, "overlap": 0.95}):
        with pytest.raises(UserError, match=r"must be at least 0, and between 0 and 0\.9"):
            predictor(np.zeros((8, 8, 3), np.uint8), **options)
