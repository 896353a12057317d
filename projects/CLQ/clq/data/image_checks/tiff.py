"""The structure of TIFF files."""

import io
from collections.abc import Sequence
from typing import BinaryIO

from clq.data.image_checks import exif
from clq.data.image_checks.refusal import MIB, Refusal

# A compressed strip or tile with more pixels takes memory three times, so the file must not be large.
_MAX_PART, _MAX_COMPRESSED = 16e6, 128 * MIB


def check_tiff(f: BinaryIO, max_pixels: float) -> int:
    """Checks the tags of a TIFF file and the parts in which its pixels are stored."""
    try:
        tags = exif.read_tags(f)
    except exif.BadTags as e:
        raise Refusal(f"is damaged: {e}") from e
    except exif.TooMuchData as e:
        raise Refusal(f"has {e}", "write it again without metadata") from e
    rows = min(tags.get(exif.ROWS_PER_STRIP, 2**32), tags.get(exif.HEIGHT, 0))
    tile = tags.get(exif.TILE_WIDTH, 0) * tags.get(exif.TILE_LENGTH, 0)
    part, size = max(tags.get(exif.WIDTH, 0) * rows, tile), f.seek(0, io.SEEK_END)
    fix = "write it again with smaller tiles or strips"
    if tile > max_pixels:
        raise Refusal(f"has tiles of {tile / 1e6:.0f} megapixels", fix)
    if tags.get(exif.COMPRESSION, 1) != 1 and part > _MAX_PART and size > _MAX_COMPRESSED:
        raise Refusal(f"has compressed parts of {part / 1e6:.0f} megapixels, which are decoded at once", fix)
    return 1  # Pillow's own reading of the tag counts, because Pillow turns such images itself


def check_tiff_parts(width: int, height: int, extents: Sequence[tuple[int, int, int, int] | None]) -> None:
    """Refuses a file in which strips or tiles are missing, where Pillow would leave the image black.

    Args:
        width, height: size of the image as stored.
        extents: left, top, right and bottom of each part that Pillow will read.

    Raises:
        Refusal: the parts do not reach the corner at the lower right.
    """
    corners = [extent[2:] for extent in extents if extent is not None]
    if not any(right >= width and bottom >= height for right, bottom in corners):
        raise Refusal("is damaged: strips or tiles of it are missing")
