"""Which segmentations a detector with masks can use."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from clq.data.formats.segmentations import check_segmentation

IMAGE = {"id": 5, "file_name": "a.png", "width": 4, "height": 3}
MASK = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=np.uint8)
COMPRESSED = mask_util.encode(np.asfortranarray(MASK))["counts"].decode()
COUNTS = [3, 2, 1, 1, 5]  # of MASK by columns: 3 x 0, 2 x 1, 0, 1, 5 x 0


def check(segmentation, mask_format="bitmask"):
    annotation = {"segmentation": segmentation}
    return check_segmentation(annotation, IMAGE, mask_format), annotation["segmentation"]


def test_polygons_are_used_without_those_that_have_no_area():
    triangle = [0, 0, 3, 0, 3, 2]
    assert check([triangle, [0, 0, 1, 1]]) == (None, [triangle])


@pytest.mark.parametrize("counts", [COUNTS, COMPRESSED])
def test_runs_describe_the_mask(counts):
    fault, used = check({"size": [3.0, 4], "counts": counts})
    assert fault is None
    np.testing.assert_array_equal(mask_util.decode(used), MASK)


@pytest.mark.parametrize(
    "segmentation, message",
    [
        (None, "has segmentation null; MODEL.MASK_ON needs"),
        ("x", "has segmentation 'x' (text)"),
        ([], "without a polygon of three corners"),
        ([[0, 0, 3, 0, 3, 2], [0, 0, 3, 0, 3, 2, 1]], "has a polygon of 7 values in its segmentation"),
        ([[0, 0, 3, 0, 3, 1e300]], "has 1e+300 in its segmentation, far outside of its image"),
        ([[0, 0, 3, 0, 3, 2], [0, 0, -4.5, 0, 3, 1]], "has -4.5 in its segmentation, far outside"),
        ([[0, 0, 1, 1]], "without a polygon of three corners"),
        ([0, 0, 3, 0, 3, 2], "has segmentation [0, 0, 3, 0, 3, 2] (a list); MODEL.MASK_ON needs a list of polygons"),
        ([[0, 0, 3, 0, 3, "2"]], "has segmentation [[0, 0, 3, 0, 3, '2']]"),
        ([[0, 0, 3, 0, 3, float("nan")]], "has segmentation"),
        ({"counts": COUNTS}, "has a segmentation of size null; its image has [3, 4] (height, width)"),
        ({"size": [4, 3], "counts": COUNTS}, "has a segmentation of size [4, 3]"),
        ({"size": [3, 4]}, "counts do not add up"),
        ({"size": [3, 4], "counts": [3, 2]}, "add up to the size"),
        ({"size": [3, 4], "counts": [13, -1]}, "add up to the size"),
        ({"size": [3, 4], "counts": ["12"]}, "add up to the size"),
        ({"size": [3, 4], "counts": COMPRESSED[:-1]}, "do not add up"),
        ({"size": [3, 4], "counts": COMPRESSED + "1"}, "do not add up"),
        ({"size": [3, 4], "counts": "\u00ff\u0100"}, "do not add up"),
    ],
)
def test_faults_are_named(segmentation, message):
    fault, _ = check(segmentation)
    assert message in fault[1]


def test_only_bit_masks_can_come_from_runs():
    fault, _ = check({"size": [3, 4], "counts": COUNTS}, "polygon")
    assert "INPUT.MASK_FORMAT is polygon; set that to bitmask" in fault[1]


def test_polygons_may_reach_beyond_the_image_by_its_longer_side():
    polygon = [-4, -4, 8, 0, 3, 7]
    assert check([polygon]) == (None, [polygon])


def test_a_list_of_runs_that_changes_every_pixel_is_read():
    image = {**IMAGE, "width": 50, "height": 40}
    mask = np.random.default_rng(0).integers(0, 2, (40, 50), dtype=np.uint8)  # differences of runs, some negative
    counts = mask_util.encode(np.asfortranarray(mask))["counts"].decode()
    annotation = {"segmentation": {"size": [40, 50], "counts": counts}}
    assert check_segmentation(annotation, image, "bitmask") is None
