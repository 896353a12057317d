"""Images with more than 8 bits in a channel keep their contrast, or are refused: none becomes black without a word."""

import logging

import clq
import numpy as np
import pytest
from clq.data import grey
from clq.data.images import ImageError, read_image
from clq.data.mapper import build_test_mapper
from hostile_images import png
from PIL import Image


@pytest.fixture
def read(tmp_path):
    """Writes an array with one row as an image file and returns its grey values as read."""

    def read_back(values, dtype, suffix="tif", **options):
        path = str(tmp_path / f"a.{suffix}")
        Image.fromarray(np.array([values], dtype)).save(path)
        return read_image(path, "L", **options)[0, :, 0].tolist()

    return read_back


@pytest.mark.parametrize(("dtype", "suffix"), [(np.uint16, "png"), (np.uint16, "tif"), (np.int32, "tif")])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),  # 8 bits
        ([0, 256, 1023], [0, 64, 255]),  # 10 bits: 256 * 255 / 1023 = 63.8
        ([0, 2048, 4000], [0, 128, 249]),  # 12 bits: 2048 * 255 / 4095 = 127.5, 4000 * 255 / 4095 = 249.1
        ([0, 8192, 16000], [0, 128, 249]),  # 14 bits: 8192 * 255 / 16383 = 127.5, 16000 * 255 / 16383 = 249.04
        ([0, 255, 256, 65535], [0, 1, 1, 255]),  # 16 bits: 255 * 255 / 65535 = 0.99
    ],
)
def test_the_bits_of_integers_follow_from_the_largest(read, dtype, suffix, values, expected):
    assert read(values, dtype, suffix) == expected


def test_real_numbers_up_to_1_are_shares_and_others_are_grey_values(read):
    assert read([0, 0.25, 0.5, 1], np.float32) == [0, 64, 128, 255]  # 63.75, 127.5
    assert read([0, 0.25, 100, 255], np.float32) == [0, 0, 100, 255]
    assert read([0, 2048, 4095], np.float32) == [0, 128, 255]


def test_a_range_is_the_same_for_all_images(read):
    options = {"grey_range": (1000, 2000)}
    assert read([0, 1000, 1500, 2000, 60000], np.uint16, "png", **options) == [0, 0, 128, 255, 255]
    assert read([-5, 1200, 1500], np.int32, **options) == [0, 51, 128]
    assert read([-1.5, 0, 1.5], np.float32, grey_range=(-1, 1)) == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "dtype", "words"),
    [
        ([0, np.nan], np.float32, "NaN or infinite"),
        ([0, np.inf], np.float32, "NaN or infinite"),
        ([-np.inf, 1], np.float32, "NaN or infinite"),
        ([-1, 5], np.int32, r"grey values from -1 to 5; set INPUT\.GREY_RANGE"),
        ([-0.5, 0.5], np.float32, r"grey values from -0\.5 to 0\.5; set INPUT\.GREY_RANGE"),
        ([0, 70000], np.int32, r"grey values from 0 to 70000; set INPUT\.GREY_RANGE"),
    ],
)
def test_values_without_a_meaning_are_refused(read, values, dtype, words):
    with pytest.raises(ImageError, match=words):
        read(values, dtype)


def test_nan_is_refused_with_a_range_too(read):
    with pytest.raises(ImageError, match="NaN"):
        read([0, np.nan], np.float32, grey_range=(0, 1))


def test_every_color_channel_gets_the_grey_value(tmp_path):
    Image.fromarray(np.array([[0, 4095]], np.uint16)).save(tmp_path / "a.png")
    assert read_image(str(tmp_path / "a.png"), "BGR").tolist() == [[[0] * 3, [255] * 3]]


def test_a_guess_is_said_once_with_the_key(read, monkeypatch, caplog):
    monkeypatch.setattr(grey, "_warned", False)
    with caplog.at_level(logging.WARNING):
        read([0, 4000], np.uint16)
        read([0, 1000], np.uint16)
    assert caplog.text.count("Set INPUT.GREY_RANGE") == 1 and "0 to 4095" in caplog.text


def test_the_range_is_a_key(tmp_path):
    Image.fromarray(np.full((8, 8), 500, np.uint16)).save(tmp_path / "a.png")
    options = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 0, "INPUT.GREY_RANGE"]
    mapper = build_test_mapper(clq.setup_cfg(None, [*options, [0, 1000]]))
    assert mapper({"file_name": str(tmp_path / "a.png")})["image"].unique().tolist() == [128]  # 127.5
    with pytest.raises(clq.UserError, match=r"INPUT\.GREY_RANGE \[5, 5\]: must be .*all different"):
        build_test_mapper(clq.setup_cfg(None, [*options, [5, 5]]))


def test_bands_of_a_large_image_are_scaled_alike(tmp_path, monkeypatch):
    values = np.arange(40 * 30, dtype=np.uint16).reshape(40, 30) * 50
    Image.fromarray(values).save(tmp_path / "a.png")
    whole = read_image(str(tmp_path / "a.png"), "L")
    monkeypatch.setattr(grey, "_BAND_PIXELS", 70)  # two rows, with one left over in none
    assert (read_image(str(tmp_path / "a.png"), "L") == whole).all()
    assert (whole[:, :, 0] == np.rint(values * (255 / 65535))).all()


def test_colors_with_16_bits_keep_the_upper_ones_and_are_refused_where_nothing_is_in_them(tmp_path):
    def pixel(*values):
        row = b"\0" + b"".join(v.to_bytes(2, "big") for v in values)
        (tmp_path / "a.png").write_bytes(png(1, 1, 16, 2, row))
        return read_image(str(tmp_path / "a.png"), "RGB")[0, 0].tolist()

    assert pixel(65535, 0x8000, 255) == [255, 128, 0]
    for largest in (0, 255, 4095, 16383):
        with pytest.raises(ImageError, match="at most 14 are used, so it would be dark; convert it to 8 bits"):
            pixel(largest, 0, 0)
