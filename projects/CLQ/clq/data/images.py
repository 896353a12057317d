"""The image reader of training, evaluation and prediction, which trusts no file."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from PIL import Image

from clq.config import check_keys
from clq.data.grey import bands, bits_of_colors, check_colors, grey_scale, is_deep
from clq.data.image_checks import Refusal, check_content, check_header, check_pixels, find_format
from clq.data.image_checks.exif import HEIGHT, ORIENTATION, WIDTH
from clq.data.image_checks.png import check_png_rows
from clq.data.image_checks.tiff import check_tiff_parts
from clq.errors import UserError, reason_of
from clq.utils.files import open_regular

MAX_MEGAPIXELS = 90.0
_BYTES_PER_PIXEL = 8  # of an image that is not compressed, with four channels of 16 bits

# Both are reported as errors, with the name of the file, or do not matter for the pixels.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(UserError):
    """An image file that cannot be used. The message names it, what is wrong and what to do next."""


def read_options(cfg: CfgNode) -> dict[str, Any]:
    """The keyword arguments of :func:`read_image` that a config sets.

    Raises:
        UserError: a key has a value that it does not accept.
    """
    check_keys(cfg, "INPUT.MAX_MEGAPIXELS", "INPUT.GREY_RANGE")
    return {"max_megapixels": cfg.INPUT.MAX_MEGAPIXELS, "grey_range": tuple(cfg.INPUT.GREY_RANGE) or None}


def read_image(
    path: str,
    image_format: str,
    *,
    max_megapixels: float = MAX_MEGAPIXELS,
    grey_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """Reads an image file and turns it upright according to its EXIF data.

    The file is decoded once, and any error of the decoder refuses it. The checksums of a PNG and the end of a JPEG are
    verified besides. JPEG, WEBP, BMP, PPM and most TIFF files have no checksum: what still decodes after a change is
    read.

    Transparency is dropped, palettes and other color models become RGB, and of several frames the first is read. Grey
    images with more than 8 bits or with real numbers are scaled by :func:`clq.data.grey.grey_scale`. Color images with
    16 bits keep their upper 8 bits.

    Args:
        path: path of the file.
        image_format: order of the channels, "RGB" or "BGR", or "L" for a single grey channel.
        max_megapixels: upper bound on width * height, in millions, that is checked before any pixel is decoded.
        grey_range: values of deep grey images that become 0 and 255. None derives them from each image.

    Returns:
        (H, W, C) uint8, where C is 3, or 1 for "L".

    Raises:
        ImageError: the file cannot be opened, is of none of the formats that are read, is damaged, is too large, or
            would become black.
    """
    with _opened(path, max_megapixels) as (f, image, orientation):
        name = image.format or ""
        check_content(f, "JPEG" if name == "MPO" else name)
        bits = bits_of_colors(f, image)
        if name == "TIFF":
            check_tiff_parts(*_stored_size(image), [tile[1] for tile in image.tile])  # type: ignore[attr-defined]
        f.seek(0)
        image.load()
        if name == "PNG" and (image.info.get("interlace") or _ends_black(image)):
            check_png_rows(f)
        if name == "TIFF" and ORIENTATION not in image.tag_v2:  # type: ignore[attr-defined]
            orientation = 1  # Pillow has turned the image already, and has removed the tag
        image.info.clear()  # transparency, which would only slow down the conversion
        if is_deep(image):
            return _convert(image, image_format, orientation, grey_scale(image, grey_range))
        pixels = _convert(image, image_format, orientation, None)
        check_colors(pixels, bits)
        return pixels


def read_size(path: str, *, max_megapixels: float = MAX_MEGAPIXELS) -> tuple[int, int]:
    """Reads the size of the image that :func:`read_image` returns, without decoding it.

    Args:
        path: path of the file.
        max_megapixels: upper bound on width * height, in millions.

    Returns:
        (width, height), swapped where EXIF data turn the image by 90 degrees.

    Raises:
        ImageError: :func:`read_image` would refuse the file because of its header.
    """
    with _opened(path, max_megapixels) as (_, image, orientation):
        width, height = _stored_size(image)
        return (height, width) if orientation >= 5 else (width, height)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image in its file; some versions of Pillow give those of an upright TIFF image."""
    if image.format == "TIFF":
        return image.tag_v2[WIDTH], image.tag_v2[HEIGHT]  # type: ignore[attr-defined]
    return image.size


def _ends_black(image: Image.Image) -> bool:
    """Whether the last row of a loaded image is 0, as it is if there was no data for it."""
    last = image.crop((0, image.height - 1, image.width, image.height))
    return not np.asarray(last).any()


@contextlib.contextmanager
def _opened(path: str, max_megapixels: float) -> Iterator[tuple[BufferedReader, Image.Image, int]]:
    """Opens an image file of which nothing is decoded yet.

    Yields:
        The file, the image, and its orientation by EXIF data.

    Raises:
        ImageError: in place of any exception in the enclosed code.
    """
    try:
        with open_regular(path) as f:
            _check_bytes(os.fstat(f.fileno()).st_size, max_megapixels)
            name = find_format(f.read(64))
            orientation = check_header(f, name, max_megapixels * 1e6)
            if Image.MAX_IMAGE_PIXELS is not None:  # Pillow's own limit must not be lower
                Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, int(max_megapixels * 1e6))
            f.seek(0)
            with Image.open(f, formats=[name]) as image:
                width, height = image.size
                check_pixels(width, height, max_megapixels * 1e6)
                if name == "TIFF":  # the tag as Pillow understands it, because Pillow turns such an image itself
                    found = image.tag_v2.get(ORIENTATION)  # type: ignore[attr-defined]
                    orientation = found if found in range(1, 9) else 1
                yield f, image, orientation
    except Refusal as e:
        raise ImageError(f"image {path}: {e.reason}; {e.fix}.") from e
    except Image.DecompressionBombError as e:  # more than twice as many pixels, or a frame or tile of that size
        raise ImageError(
            f"image {path}: has far more pixels than INPUT.MAX_MEGAPIXELS {max_megapixels:g}; raise that if you trust "
            "the file."
        ) from e
    except ImageError:
        raise
    except Exception as e:  # a damaged file can raise almost any exception
        raise ImageError(f"image {path}: cannot be read ({reason_of(e)}); replace or remove it.") from e


def _check_bytes(size: int, max_megapixels: float) -> None:
    if size > max_megapixels * 1e6 * _BYTES_PER_PIXEL:
        raise Refusal(
            f"has {size / 1e6:.0f} MB, more than {_BYTES_PER_PIXEL} bytes for each of INPUT.MAX_MEGAPIXELS "
            f"{max_megapixels:g}",
            "raise that if you trust the file",
        )


def _convert(image: Image.Image, image_format: str, orientation: int, to_grey: Any) -> np.ndarray:
    """Converts an image to an upright array, a band of rows after the other.

    Args:
        image: image that is loaded.
        image_format: see :func:`read_image`.
        orientation: orientation by EXIF data.
        to_grey: function from an array of grey values to uint8, for deep grey images; None for others.
    """
    if image_format not in ("RGB", "BGR", "L"):
        raise Refusal(f"INPUT.FORMAT {image_format} is not known", "set RGB, BGR or L")
    width, height = image.size
    shape = (width, height) if orientation >= 5 else (height, width)
    upright = np.empty((*shape, 1 if image_format == "L" else 3), np.uint8)
    stored = _as_stored(upright, orientation)
    mode = "L" if image_format == "L" else "RGB"
    for first, band in bands(image):
        if to_grey is not None:
            pixels = to_grey(np.asarray(band))
        else:
            pixels = np.asarray(band if band.mode == mode else band.convert(mode))
        stored[first : first + band.height] = pixels if pixels.ndim == 3 else pixels[:, :, None]
    return upright[:, :, ::-1] if image_format == "BGR" else upright  # a view, as Detectron2's: copying takes longer


def _as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """A view of an upright array in which rows and columns lie as in the file."""
    view = upright.swapaxes(0, 1) if orientation >= 5 else upright
    rows, columns = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (-1, 1), 7: (-1, -1), 8: (1, -1)}.get(orientation, (1, 1))
    return view[::rows, ::columns]
