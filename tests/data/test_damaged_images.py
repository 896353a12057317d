"""A damaged file is refused, and what is read has the size that its header gives."""

import io
import random

import numpy as np
import pytest
from clq.data.images import ImageError, read_image, read_size
from hostile_images import grey_tiff, png
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # what Pillow says about tags that are damaged
SEED = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
FORMATS = {
    "png": [{}, {"bits": 4}],
    "jpg": [{}, {"progressive": True}, {"restart_marker_blocks": 1}],
    "bmp": [{}],
    "tif": [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}, {"compression": "jpeg"}],
    "webp": [{}, {"lossless": True}],
    "ppm": [{}],
}
CASES = [(suffix, options) for suffix, each in FORMATS.items() for options in each]


def encode(suffix: str, options: dict) -> bytes:
    image = Image.fromarray(SEED)
    exif, f = Image.Exif(), io.BytesIO()
    exif[274] = 6
    image = image.quantize(16) if "bits" in options else image
    name = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
    image.save(f, name, **options, **({} if suffix in ("bmp", "ppm") else {"exif": exif}))
    return f.getvalue()


def is_read(path, content: bytes) -> bool:
    """Whether a file with this content is read, as an image of the size that its header gives, rather than refused."""
    path.write_bytes(content)
    try:
        size = read_size(str(path))
    except ImageError:
        size = None
    try:
        image = read_image(str(path), "RGB")
    except ImageError as e:
        assert str(e).startswith(f"image {path}: ") and "\n" not in str(e) and "; " in str(e)
        return False
    assert size == (image.shape[1], image.shape[0])
    return True


@pytest.mark.parametrize(("suffix", "options"), CASES, ids=str)
def test_random_damage_is_refused_or_leaves_an_image_of_the_size_in_the_header(suffix, options, tmp_path):
    content, rng = encode(suffix, options), random.Random(3)
    path = tmp_path / f"a.{suffix}"
    assert is_read(path, content)
    for _ in range(80):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 8))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        is_read(path, bytes(damaged))


@pytest.mark.parametrize(("suffix", "options"), CASES, ids=str)
def test_a_file_that_is_cut_off_is_refused(suffix, options, tmp_path):
    content = encode(suffix, options)
    ends = sorted({*range(0, len(content), 29), *range(len(content) - 12, len(content))})
    # Pillow writes the tags of a TIFF file before the pixels, and may write a last byte that fills up an even number.
    last = len(content) - (suffix == "tif")
    assert [n for n in ends if n < last and is_read(tmp_path / f"a.{suffix}", content[:n])] == []


@pytest.mark.parametrize("options", FORMATS["png"], ids=str)
def test_no_changed_bit_of_a_png_is_read(options, tmp_path):
    content = encode("png", options)
    for position in range(0, 8 * len(content), 13):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        assert not is_read(tmp_path / "a.png", bytes(damaged)), position


@pytest.mark.parametrize("interlaced", [0, 1])
def test_a_png_with_fewer_rows_than_its_header_says_is_not_half_black(interlaced, tmp_path):
    """With right checksums, because a writer ended early: 8 x 8 white pixels, of which rows are missing at the end.

    The passes of an interlaced image of this size have 1, 1, 1, 2, 2, 4 and 4 rows of 1, 1, 2, 2, 4, 4 and 8 pixels.
    """
    sizes = [1, 1, 2, 2, 2, 4, 4, *[4] * 4, *[8] * 4] if interlaced else [8] * 8
    rows = [b"\0" + b"\xff" * size for size in sizes]
    path = tmp_path / "a.png"
    for kept in range(len(rows) + 1):
        content = png(8, 8, 8, 0, b"".join(rows[:kept]), interlaced=interlaced)
        assert is_read(path, content) == (kept == len(rows))
    assert read_image(str(path), "L").min() == 255


def test_a_png_that_ends_black_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(png(2, 2, 8, 0, b"\0\xff\xff\0\0\0"))
    assert read_image(str(tmp_path / "a.png"), "L")[:, :, 0].tolist() == [[255, 255], [0, 0]]


def test_a_tiff_without_all_its_strips_is_not_half_black(tmp_path):
    assert is_read(tmp_path / "a.tif", grey_tiff(height=4, rows=4))
    assert not is_read(tmp_path / "a.tif", grey_tiff(height=5, rows=4))
