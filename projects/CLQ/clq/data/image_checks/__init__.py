"""What is checked of an image file before Pillow sees it: its format, its structure and its metadata.

Pillow checks neither the checksums of a PNG's pixels nor the end of a JPEG, and loads all metadata that a file has.
"""

import re
from io import BufferedReader
from typing import BinaryIO

from clq.data.image_checks.jpeg import check_jpeg_end, check_jpeg_header
from clq.data.image_checks.png import check_png_header, check_png_sums
from clq.data.image_checks.refusal import Refusal, check_pixels
from clq.data.image_checks.tiff import check_tiff
from clq.data.image_checks.webp import check_webp

__all__ = ["FORMATS", "Refusal", "check_content", "check_header", "check_pixels", "find_format"]

# The formats that are read, by how a file begins. Others are left out because Pillow hands them to other programs (EPS
# to Ghostscript, WMF), because they are containers of many kinds of data (PDF, FPX, ICO, PSD), or because data sets
# do not use them. A photo with a second picture in it (MPO, as phones write) is a JPEG file and is read as one.
_BEGINNINGS = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"BM", "BMP"),
    (rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]", "TIFF"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"P[1-6f]\s", "PPM"),
)
FORMATS = tuple(name for _, name in _BEGINNINGS)
# What else people have under the name of an image.
_OTHERS = (
    (rb"GIF8", "a GIF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "an EPS or PostScript file"),
    (rb"%PDF", "a PDF"),
    (rb"....ftyp(heic|heix|hevc|mif1|msf1)", "a HEIC photo"),
    (rb"....ftypavif", "an AVIF image"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (rb"8BPS", "a Photoshop file"),
    (rb"\s*<(\?xml|svg|!|html)", "XML, SVG or a web page"),
    (rb"PK\x03\x04", "a zip archive"),
    (rb"version https://git-lfs", "a pointer of Git LFS; run `git lfs pull`"),
)


def find_format(beginning: bytes) -> str:
    """The name of the format of a file, one of :data:`FORMATS`.

    Raises:
        Refusal: it is none of them.
    """
    for pattern, name in _BEGINNINGS:
        if re.match(pattern, beginning, re.DOTALL):
            return name
    if not beginning:
        raise Refusal("is empty")
    fix = f"convert it to one of {', '.join(FORMATS)}"
    for pattern, name in _OTHERS:
        if re.match(pattern, beginning, re.DOTALL):
            raise Refusal(f"is {name}", fix)
    raise Refusal("is none of the formats that are read", fix)


def check_header(f: BufferedReader, image_format: str, max_pixels: float) -> int:
    """Checks the structure of a file without reading its pixels.

    Args:
        f: the file.
        image_format: one of :data:`FORMATS`.
        max_pixels: upper bound on the number of pixels.

    Returns:
        The orientation that EXIF data or TIFF tags give the image, from 1 to 8. It is 1 for EXIF data that cannot be
        read, which viewers leave out too.

    Raises:
        Refusal: the file is cut off, damaged, or asks for too much memory.
    """
    if image_format == "JPEG":
        return check_jpeg_header(f)
    if image_format == "PNG":
        return check_png_header(f)
    if image_format == "WEBP":
        return check_webp(f, max_pixels)
    return check_tiff(f, max_pixels) if image_format == "TIFF" else 1


def check_content(f: BinaryIO, image_format: str) -> None:
    """Checks that the part of a file that holds the pixels is whole, as far as its format allows.

    Raises:
        Refusal: a PNG has a wrong checksum, or a JPEG has no end.
    """
    if image_format == "PNG":
        check_png_sums(f)
    elif image_format == "JPEG":
        check_jpeg_end(f)
