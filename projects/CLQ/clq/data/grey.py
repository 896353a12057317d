"""Images with more than 8 bits in a channel, whose range of values no file says."""

import logging
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from clq.data.image_checks import Refusal

logger = logging.getLogger(__name__)

_BAND_PIXELS = 1 << 20  # pixels that are converted at once, so that a large image is never in memory three times
_DEPTHS = (8, 10, 12, 14, 16)  # bits of the sensors that write such images
_DARK = 64  # 8-bit values below this are all that the upper half of a 14-bit value in 16 bits can give
_warned = False


def bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Cuts a loaded image into bands of rows; yields the first row of each and the band."""
    rows = max(1, _BAND_PIXELS // image.width)
    if rows >= image.height:
        yield 0, image
        return
    for first in range(0, image.height, rows):
        yield first, image.crop((0, first, image.width, min(first + rows, image.height)))


def is_deep(image: Image.Image) -> bool:
    """Whether an image is grey with more than 8 bits: integers of 16 or 32 bits, or real numbers."""
    return image.mode.startswith("I") or image.mode == "F"


def grey_scale(image: Image.Image, grey_range: tuple[float, float] | None) -> Callable[[np.ndarray], np.ndarray]:
    """Chooses how the values of a deep grey image become 0 to 255.

    With a range, its ends become 0 and 255, values between them are scaled linearly and rounded, and values outside
    are clipped. Without one, the range begins at 0 and ends at the largest number of 8, 10, 12, 14 or 16 bits,
    whichever is the first that no value exceeds. An image of 12 bits in a 16-bit file is thus read by its 12 bits. Real
    numbers of which none exceeds 1 have the range 0 to 1. Since a dark image can seem to have fewer bits than the
    others of its data set, a warning recommends to set the range, once.

    Args:
        image: image that is loaded, of a mode that :func:`is_deep` accepts.
        grey_range: values that become 0 and 255, or None.

    Returns:
        A function from an array of values to uint8.

    Raises:
        Refusal: a value is NaN or infinite, or, without a range, negative or of more than 16 bits.
    """
    global _warned
    low, high = _extremes(image)
    if not np.isfinite([low, high]).all():
        raise Refusal("has values that are NaN or infinite", "replace them")
    if grey_range is None:
        if low < 0 or high >= 1 << _DEPTHS[-1]:
            raise Refusal(f"has grey values from {low:g} to {high:g}", "set INPUT.GREY_RANGE to [black, white]")
        grey_range = _guess(high, image.mode == "F")
        if not _warned:
            _warned = True
            logger.warning(
                "Grey images with more than 8 bits: the range of each is derived from its largest value, for the first "
                "one 0 to %g. Set INPUT.GREY_RANGE if all images of the data set have the same.",
                grey_range[1],
            )
    black, white = grey_range

    def scale(values: np.ndarray) -> np.ndarray:
        scaled = (values.astype(np.float64) - black) * (255 / (white - black))
        return np.rint(scaled).clip(0, 255).astype(np.uint8)

    return scale


def _extremes(image: Image.Image) -> tuple[float, float]:
    """The smallest and the largest value; NaN if any value is NaN."""
    values = [np.asarray(band) for _, band in bands(image)]
    return float(min(v.min() for v in values)), float(max(v.max() for v in values))


def _guess(high: float, is_real: bool) -> tuple[float, float]:
    if is_real and high <= 1:
        return 0.0, 1.0
    return 0.0, float(next(2**bits - 1 for bits in _DEPTHS if high < 2**bits))


def bits_of_colors(f: BinaryIO, image: Image.Image) -> int:
    """The bits of a channel in a PNG or TIFF file of colors; 8 for other formats, of which Pillow knows the range."""
    if image.format == "PNG":
        f.seek(24)
        return f.read(1)[0]
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (8,)))  # type: ignore[attr-defined]
    return 8


def check_colors(pixels: np.ndarray, bits: int) -> None:
    """Refuses a color image with 16 bits of which only the lower ones are used.

    Pillow keeps the upper 8 bits of each channel, and of values of 8 to 14 bits nothing or little is left in these.

    Args:
        pixels: (H, W, C) uint8, what Pillow made of the file.
        bits: bits of a channel in the file.

    Raises:
        Refusal: there are 16 bits in a channel and no value has more than 14.
    """
    if bits == 16 and pixels.max() < _DARK:
        raise Refusal(
            "has colors with 16 bits of which at most 14 are used, so it would be dark", "convert it to 8 bits"
        )
