"""Colours are compared with Detectron2's transforms, with HSV of the standard library and with values by hand."""

import colorsys

import numpy as np
import pytest
from clq.data.colors import RandomColor, RandomFloatColor, recolored
from detectron2.data import transforms as T

RANGES = {"brightness": 0.2, "contrast": (0.6, 1.4), "saturation": (0.5, 1.2)}


def test_random_color_equals_detectron2s_three_transforms(monkeypatch):
    image = np.random.default_rng(0).integers(80, 170, (12, 15, 3), dtype=np.uint8)  # nothing is clipped at 0 or 255
    b, c, s = 1.1, 0.8, 1.2
    monkeypatch.setattr(np.random, "uniform", lambda *_: np.array([b, c, s]))
    ours = RandomColor(0.2, "RGB").get_transform(image).apply_image(image)
    bgr = RandomColor(0.2, "BGR").get_transform(image[..., ::-1]).apply_image(np.ascontiguousarray(image[..., ::-1]))
    theirs = image.astype(float)
    for augmentation, factor in [(T.RandomBrightness, b), (T.RandomContrast, c), (T.RandomSaturation, s)]:
        monkeypatch.setattr(np.random, "uniform", lambda *_, factor=factor: factor)
        theirs = augmentation(0, 0).get_transform(theirs).apply_image(theirs)
    assert np.abs(ours - theirs).max() <= 1  # rounding to whole values
    assert np.array_equal(bgr[..., ::-1], ours)


def test_values_are_shifted_then_scaled_and_not_clipped():
    """By hand: 0.2 of 255 is 51, and black and white leave the range of pixels."""
    image = np.array([[[0, 100, 255]]], np.uint8)
    assert recolored(image, "RGB", shift=0.2, contrast=2.0)[0, 0] == pytest.approx([102, 302, 612])
    assert recolored(image, "RGB", shift=-0.2, contrast=2.0)[0, 0] == pytest.approx([-102, 98, 408])
    grey = np.array([[[7], [9]]], np.uint8)
    assert recolored(grey, "L", shift=0.2, contrast=0.5).ravel() == pytest.approx([29, 30])


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.2])
def test_saturation_is_that_of_hsv(factor):
    image = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    expected = []
    for pixel in image.reshape(-1, 3) / 255:
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        # colorsys clips a saturation above 1. A channel is v minus a distance that is proportional to s.
        expected.append(v + (np.array(colorsys.hsv_to_rgb(h, s, v)) - v) * factor)
    found = recolored(image, "RGB", saturation=factor)
    assert found.reshape(-1, 3) == pytest.approx(255 * np.array(expected), abs=1e-2)
    swapped = recolored(np.ascontiguousarray(image[..., ::-1]), "BGR", saturation=factor)
    assert swapped[..., ::-1] == pytest.approx(found, abs=1e-3)


def test_each_change_is_drawn_independently_within_its_range():
    np.random.seed(0)
    change = RandomFloatColor(**RANGES, prob=0.5, channels="RGB")
    image = np.zeros((1, 1, 3), np.uint8)
    drawn = [change.get_transform(image).op.keywords for _ in range(4000)]
    for key, neutral, low, high in (("shift", 0, -0.2, 0.2), ("contrast", 1, 0.6, 1.4), ("saturation", 1, 0.5, 1.2)):
        values = np.array([x[key] for x in drawn])
        changed = values[values != neutral]
        assert len(changed) / len(values) == pytest.approx(0.5, abs=0.03)
        assert low <= changed.min() < low + 0.01 and high - 0.01 < changed.max() <= high
    assert np.mean([x["shift"] != 0 and x["contrast"] != 1 for x in drawn]) == pytest.approx(0.25, abs=0.03)


def test_an_image_becomes_real_numbers_even_if_nothing_changes():
    image = np.array([[[3, 200, 90]]], np.uint8)
    out = RandomFloatColor(**RANGES, prob=0.0, channels="BGR").get_transform(image).apply_image(image)
    assert out.dtype == np.float32 and out[0, 0] == pytest.approx([3, 200, 90], abs=1e-4)
