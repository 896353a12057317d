import numpy as np
import pytest
import torch
from clq.inspection.positives import Pyramid, build_pyramid, count_positives
from clq.inspection.training_images import SizedImage
from clq.modeling.assign.atss import match_atss

ONE_LEVEL = Pyramid(("p3",), (8,), 32, 4.0, 0.0, 9)  # anchors of 32 px


def image(*boxes, size=(64, 64)):
    return SizedImage(size, np.array(boxes, float), 1.0)


def test_one_positive_worked_by_hand():
    """The box is the anchor of location (4, 4). Its neighbours' IoUs are 0.6 and 0.391, and mean + std is 0.750."""
    assert count_positives(ONE_LEVEL, [image([16, 16, 48, 48])]).tolist() == [1]


def test_a_box_between_the_locations_has_no_positive():
    assert count_positives(ONE_LEVEL, [image([33, 33, 39, 39], [16, 16, 48, 48])]).tolist() == [0, 1]


def test_counts_are_in_the_order_of_the_images_whatever_their_sizes():
    wide, small = image([16, 16, 48, 48], [64, 16, 96, 48], size=(64, 128)), image([33, 33, 39, 39])
    assert count_positives(ONE_LEVEL, [wide, small]).tolist() == [1, 1, 0]
    assert count_positives(ONE_LEVEL, [small, wide]).tolist() == [0, 1, 1]


def test_counts_are_those_of_match_atss_for_each_image():
    rng = np.random.default_rng(0)
    pyramid = Pyramid(("p3", "p4", "p5"), (8, 16, 32), 32, 6.0, 0.5, 9)
    images, expected = [], []
    for size in [(200, 300), (300, 200), (96, 96)]:
        corner = rng.uniform(0, 60, (9, 2))
        images.append(SizedImage(size, np.concatenate([corner, corner + rng.uniform(4, 90, (9, 2))], axis=1), 1.0))
        grids, boxes = pyramid.grid_sizes(size), images[-1].boxes
        idxs, _ = match_atss(grids, (8, 16, 32), torch.tensor(boxes).float(), anchor_scale=6.0, center_offset=0.5)
        expected += [int((idxs == i).sum()) for i in range(9)]
    assert count_positives(pyramid, images).tolist() == expected


def test_the_grid_is_that_of_the_padded_image():
    pyramid = Pyramid(("p3", "p7"), (8, 128), 32, 8.0, 0.0, 9)
    assert pyramid.grid_sizes((65, 32)) == [(12, 4), (1, 1)]  # 96 x 32 pixels
    assert pyramid.num_locations([image([0, 0, 1, 1], size=(65, 32))] * 2) == 2 * (48 + 1)


@pytest.mark.parametrize(
    "name, levels, strides",
    [
        ("CLQ/clq_R_50_FPN_1x", ("p3", "p4", "p5", "p6", "p7"), (8, 16, 32, 64, 128)),
        ("CLQ/clq_lite_320", ("p3", "p4", "p5"), (8, 16, 32)),
    ],
)
def test_pyramid_of_a_config(config, name, levels, strides):
    pyramid = build_pyramid(config(name=name))
    assert (pyramid.levels, pyramid.strides, pyramid.multiple) == (levels, strides, 32)
