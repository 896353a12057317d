"""Damaged images: they are read as images of their size or refused in one line."""

import io

import hypothesis
import numpy as np
import pytest
from clq.data.images import read_image
from fuzzing import accepting_or_refusing, damaged_bytes
from hypothesis import strategies as st
from PIL import Image

COLORS = np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)
GREY = (np.arange(240, dtype=np.uint16) * 200).reshape(12, 20)


def encode(pixels, **kwargs):
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, **kwargs)
    return buffer.getvalue()


def turned():
    """EXIF data that turn an image by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


ORIGINALS = {
    "PNG": [encode(COLORS, format="PNG"), encode(GREY, format="PNG"), encode(COLORS, format="PNG", exif=turned())],
    "JPEG": [encode(COLORS, format="JPEG"), encode(COLORS, format="JPEG", progressive=True, exif=turned())],
    "others": [
        *(encode(COLORS, format=name) for name in ("BMP", "GIF", "WEBP", "TIFF", "PPM", "EPS", "PCX", "TGA")),
        encode(GREY, format="TIFF", compression="tiff_lzw"),
        encode((GREY / 48000).astype(np.float32), format="TIFF"),
        encode(Image.fromarray(COLORS).convert("P"), format="PNG"),
        encode(Image.fromarray(COLORS).convert("CMYK"), format="JPEG"),
    ],
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("images") / "a.png"


@pytest.mark.fuzz
@hypothesis.given(data=st.data(), image_format=st.sampled_from(["RGB", "BGR", "L"]))
@pytest.mark.parametrize("kind", ORIGINALS)
def test_a_damaged_image(path, kind, image_format, data):
    path.write_bytes(data.draw(damaged_bytes(ORIGINALS[kind])))
    with accepting_or_refusing():
        pixels = read_image(str(path), image_format)
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3 and min(pixels.shape) >= 1
        assert pixels.shape[2] == (1 if image_format == "L" else 3)
