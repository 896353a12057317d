"""Image files become upright arrays in the requested channel order, and files that cannot be used are named."""

import os
import re

import numpy as np
import pytest
from clq.data.images import ImageError, read_image, read_size
from hostile_images import png, png_chunk
from PIL import Image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_channels_come_in_the_requested_order(image_format, tmp_path):
    Image.new("RGBA", (2, 3), (10, 20, 30, 0)).save(tmp_path / "a.png")
    color = (10, 20, 30) if image_format == "RGB" else (30, 20, 10)
    assert read_image(str(tmp_path / "a.png"), image_format).tolist() == [[list(color)] * 2] * 3


@pytest.mark.parametrize(("content", "reason"), [(b"", "is empty"), (b"no image", "is none of the formats")])
def test_files_that_are_no_images_are_named(content, reason, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (lambda p: read_image(p, "RGB"), read_size):
        with pytest.raises(ImageError, match=re.escape(f"image {path}: {reason}")):
            read(str(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"missing\.png: cannot be read \(No such file"):
        read_size(str(tmp_path / "missing.png"))


@pytest.mark.parametrize(
    ("beginning", "words"),
    [(b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"), (b"%PDF-1.4", "PDF"), (b"GIF89a", "GIF"), (b"8BPS\0\1", "Photoshop")],
)
def test_formats_that_are_not_read_are_called_by_their_name(beginning, words, tmp_path):
    (tmp_path / "a.png").write_bytes(beginning + bytes(100))
    with pytest.raises(ImageError, match=rf"is an? {words}.*; convert it to one of JPEG, PNG"):
        read_image(str(tmp_path / "a.png"), "RGB")


def test_an_eps_file_never_reaches_ghostscript(tmp_path, monkeypatch):
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    eps = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) run\n%%EOF\n"
    (tmp_path / "a.png").write_text(eps)
    with pytest.raises(ImageError, match="EPS"):
        read_image(str(tmp_path / "a.png"), "RGB")
    assert not (tmp_path / "ran").exists()


def test_pipes_devices_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero", tmp_path):
        with pytest.raises(ImageError, match=rf"{path}: cannot be read \((no regular file|Is a directory)\)"):
            read_size(str(path))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_exif_turns_the_image_and_its_size(orientation, suffix, tmp_path):
    """The upright image has a red, a green, a blue and a white quarter; its sides are 16 and 32 pixels long."""
    upright = np.full((32, 16, 3), 255, np.uint8)
    upright[:16, :8], upright[:16, 8:], upright[16:, :8] = RED, GREEN, BLUE
    # How a camera has to store the image so that the orientation makes it upright, by the definition of each value.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),  # to be turned clockwise
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),  # to be turned counter-clockwise
    }[orientation]
    exif, path = Image.Exif(), str(tmp_path / f"a.{suffix}")
    exif[274] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    image = read_image(path, "RGB")
    assert image.shape == (32, 16, 3) and read_size(path) == (16, 32)
    assert np.abs(image.astype(int) - upright).max() <= (3 if suffix == "jpg" else 0)


def test_exif_data_after_the_pixels_of_a_png_count(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    content = png(2, 1, 8, 2, b"\0" + bytes([*RED, *GREEN]))
    end = content.index(b"IEND") - 4
    path = tmp_path / "a.png"
    path.write_bytes(content[:end] + png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + content[end:])
    assert read_size(str(path)) == (1, 2)
    assert read_image(str(path), "RGB").tolist() == [[list(RED)], [list(GREEN)]]


def test_a_photo_with_a_second_picture_is_read_as_its_first(tmp_path):
    """Phones write such files (MPO) under the name of a JPEG."""
    path = str(tmp_path / "a.jpg")
    Image.new("RGB", (16, 8), RED).save(path, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8), BLUE)])
    assert read_size(path) == (16, 8)
    assert np.abs(read_image(path, "RGB").astype(int) - RED).max() <= 3


def test_color_models_become_rgb(tmp_path):
    """Palette, transparency, one bit, CMYK and YCbCr, each with a value that is worked out by hand."""

    def read(name, image, **options):
        image.save(tmp_path / name, **options)
        return read_image(str(tmp_path / name), "RGB")[0, 0].tolist()

    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([*RED, *GREEN])
    assert read("p.png", palette) == [*GREEN]
    assert read("pt.png", palette, transparency=1) == [*GREEN]
    assert read("la.png", Image.new("LA", (1, 1), (70, 0))) == [70, 70, 70]
    assert read("1.png", Image.new("1", (1, 1), 1)) == [255, 255, 255]
    # 255 of a printing colour is all of it: without cyan and black, magenta and yellow give red.
    assert read("cmyk.tif", Image.new("CMYK", (1, 1), (0, 255, 255, 0))) == [*RED]
    found = read("cmyk.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)  # Adobe's, stored inverted
    assert np.abs(np.subtract(found, RED)).max() <= 3
    # Y 76, Cb 85, Cr 255 is red by JFIF: R = Y + 1.402 (Cr - 128) = 254, G = 0, B = Y + 1.772 (Cb - 128) = 0.
    # Compressed, because Pillow 12 does not read what it writes without compression.
    found = read("y.tif", Image.new("YCbCr", (1, 1), (76, 85, 255)), compression="tiff_lzw")
    assert np.abs(np.subtract(found, [254, 0, 0])).max() <= 1


def test_no_file_stays_open(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.tif", compression="tiff_lzw")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:-20])
    (tmp_path / "b.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:-100])
    before = len(os.listdir("/proc/self/fd"))
    for name in ("a.png", "a.tif"):
        read_size(str(tmp_path / name))
        read_image(str(tmp_path / name), "RGB")
    for name in ("b.png", "b.tif"):
        with pytest.raises(ImageError):
            read_image(str(tmp_path / name), "RGB")
    assert len(os.listdir("/proc/self/fd")) == before
