"""Image files become arrays in the requested channel order, and unreadable files are named."""

import re

import numpy as np
import pytest
from clq.data.images import read_image
from clq.errors import UserError
from PIL import Image


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_channels_and_16_bit_grey_values(image_format, tmp_path):
    Image.new("RGBA", (2, 3), (10, 20, 30, 0)).save(tmp_path / "a.png")
    color = (10, 20, 30) if image_format == "RGB" else (30, 20, 10)
    assert read_image(str(tmp_path / "a.png"), image_format).tolist() == [[list(color)] * 2] * 3
    Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert read_image(str(tmp_path / "deep.png"), image_format)[0].tolist() == [[0] * 3, [0] * 3, [1] * 3, [255] * 3]
    assert read_image(str(tmp_path / "deep.png"), "L")[0].tolist() == [[0], [0], [1], [255]]


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_unreadable_files_are_named(content, tmp_path):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"image {path}: cannot be read (")):
        read_image(str(path), "RGB")
