"""What is checked of an image file before Pillow sees it: its format, its structure and its metadata.

Pillow checks neither the checksums of a PNG's pixels nor the end of a JPEG, and loads all metadata that a file has.
"""

import io
import re
import struct
import zlib
from typing import BinaryIO

from clq.data.exif import ORIENTATION, TILE_LENGTH, TILE_WIDTH, BadTags, TooMuchData, read_tags

_MIB = 1 << 20
_BLOCK = _MIB
# Metadata that Pillow keeps in memory, and the parts of a file, each of which takes a step in Python.
_MAX_METADATA, _MAX_EXIF, _MAX_PARTS, _MAX_SCANS = 64 * _MIB, _MIB, 500_000, 500
_MAX_WEBP = 128 * _MIB  # Pillow reads such a file as a whole

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


class Refusal(Exception):
    """A file cannot be used as an image.

    Args:
        reason: what is wrong.
        fix: what to do next.
    """

    def __init__(self, reason: str, fix: str = "replace or remove it"):
        super().__init__(reason)
        self.reason, self.fix = reason, fix


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


def check_header(f: BinaryIO, image_format: str, max_pixels: float) -> int:
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
        return _check_jpeg_header(f)
    if image_format == "PNG":
        return check_png(f, verify=False)
    if image_format == "WEBP":
        return _check_webp(f, max_pixels)
    return _check_tiff(f, max_pixels) if image_format == "TIFF" else 1


def check_content(f: BinaryIO, image_format: str) -> None:
    """Checks that the part of a file that holds the pixels is whole, as far as its format allows.

    Raises:
        Refusal: a PNG has a wrong checksum, or a JPEG has no end.
    """
    if image_format == "PNG":
        check_png(f, verify=True)
    elif image_format == "JPEG":
        _check_jpeg_end(f)


def _orientation(exif: bytes) -> int:
    """The orientation in EXIF data that begins with the header of a TIFF file."""
    if len(exif) > _MAX_EXIF:
        raise Refusal(f"has {len(exif) / _MIB:.1f} MiB of EXIF data", "remove its metadata")
    try:
        value = read_tags(io.BytesIO(exif)).get(ORIENTATION, 1)
    except BadTags:
        return 1
    except TooMuchData as e:
        raise Refusal(f"its EXIF data has {e}", "remove its metadata") from e
    return value if 1 <= value <= 8 else 1


def check_png(f: BinaryIO, verify: bool) -> int:
    """Walks the chunks of a PNG file to its end.

    Args:
        f: the file.
        verify: whether to read the chunks and verify their checksums.

    Returns:
        The orientation of its EXIF data.
    """
    position, metadata, orientation = 8, 0, 1
    for _ in range(_MAX_PARTS):
        f.seek(position)
        head = f.read(8)
        if len(head) < 8:
            raise Refusal("is cut off")
        length, kind = struct.unpack(">I4s", head)
        position += 12 + length
        metadata += 0 if kind == b"IDAT" else 12 + length
        if metadata > _MAX_METADATA:
            raise Refusal(f"has more than {_MAX_METADATA // _MIB} MiB of metadata", "remove its metadata")
        if verify:
            _verify_chunk(f, kind, length)
        elif kind == b"eXIf":
            orientation = _orientation(f.read(length))
        if kind == b"IEND":
            return orientation
    raise Refusal("has too many chunks", "write it again")


def _verify_chunk(f: BinaryIO, kind: bytes, length: int) -> None:
    checksum, left = zlib.crc32(kind), length
    while left:
        block = f.read(min(left, _BLOCK))
        if not block:
            raise Refusal("is cut off")
        checksum, left = zlib.crc32(block, checksum), left - len(block)
    if f.read(4) != struct.pack(">I", checksum):
        raise Refusal(f"is damaged: the checksum of its chunk {kind!r} is wrong")


def _check_jpeg_header(f: BinaryIO) -> int:
    """Walks the segments of a JPEG file up to its pixels, and leaves the file there; returns the orientation."""
    exif, metadata = b"", 0
    f.seek(2)
    for _ in range(_MAX_PARTS):
        marker = _next_marker(f)
        if marker == 0xD9:
            raise Refusal("has no pixels")
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        length = _segment_length(f)
        if marker == 0xDA:
            f.seek(length, 1)
            return _orientation(exif) if exif else 1
        metadata += length
        if metadata > _MAX_METADATA:
            raise Refusal(f"has more than {_MAX_METADATA // _MIB} MiB of metadata", "remove its metadata")
        if marker not in (0xE1, 0xE2):
            f.seek(length, 1)
            continue
        segment = f.read(length)
        if marker == 0xE1 and segment.startswith(b"Exif\0\0") and len(exif) <= _MAX_EXIF:
            exif += segment[6:]
        elif marker == 0xE2 and segment.startswith(b"MPF\0"):
            _orientation(segment[4:])  # the list of further pictures, of the same structure, which Pillow reads
    raise Refusal("has too many segments", "write it again")


def _next_marker(f: BinaryIO) -> int:
    marker = f.read(2)
    while marker[1:] == b"\xff":  # fill bytes
        marker = b"\xff" + f.read(1)
    if len(marker) < 2:
        raise Refusal("is cut off")
    if marker[0] != 0xFF:
        raise Refusal("is damaged: a marker is missing in its header")
    return marker[1]


def _segment_length(f: BinaryIO) -> int:
    length = f.read(2)
    if len(length) < 2:
        raise Refusal("is cut off")
    return max(struct.unpack(">H", length)[0] - 2, 0)


def _check_jpeg_end(f: BinaryIO) -> None:
    """Follows the scans of a JPEG file to the marker that ends it, which a file that is cut off lacks."""
    _check_jpeg_header(f)
    position, scans = f.tell(), 1
    while True:
        f.seek(position)
        block = f.read(_BLOCK)
        found = re.search(rb"\xff[^\x00\xd0-\xd7\xff]", block)
        if found is None:
            if len(block) < 2:
                raise Refusal("is cut off")
            position += len(block) - block.endswith(b"\xff")
            continue
        marker, position = found[0][1], position + found.end()
        if marker == 0xD9:
            return
        if marker >= 0xC0:  # a table, a comment, or the next scan of a progressive image
            f.seek(position)
            position += 2 + _segment_length(f)
            scans += marker == 0xDA
        if scans > _MAX_SCANS:
            raise Refusal(f"has more than {_MAX_SCANS} scans", "write it again")


def _check_tiff(f: BinaryIO, max_pixels: float) -> int:
    try:
        tags = read_tags(f)
    except BadTags as e:
        raise Refusal(f"is damaged: {e}") from e
    except TooMuchData as e:
        raise Refusal(f"has {e}", "write it again without metadata") from e
    tile = tags.get(TILE_WIDTH, 0) * tags.get(TILE_LENGTH, 0)
    if tile > max_pixels:
        raise Refusal(f"has tiles of {tile / 1e6:.0f} megapixels", "write it again with smaller tiles")
    return tags.get(ORIENTATION, 1) if 1 <= tags.get(ORIENTATION, 1) <= 8 else 1


def _check_webp(f: BinaryIO, max_pixels: float) -> int:
    """Checks the size of the canvas, for which Pillow takes memory at once, and that the file is whole."""
    f.seek(0, io.SEEK_END)
    size = f.tell()
    f.seek(0)
    head = f.read(30)
    if size > _MAX_WEBP:
        raise Refusal(f"has {size / _MIB:.0f} MiB, more than is read of a WEBP", "convert it to PNG or JPEG")
    if len(head) < 30 or struct.unpack("<I", head[4:8])[0] + 8 > size:
        raise Refusal("is cut off")
    if head[12:16] == b"VP8X":
        width, height = (int.from_bytes(head[i : i + 3], "little") + 1 for i in (24, 27))
    elif head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (x & 0x3FFF for x in struct.unpack("<HH", head[26:30]))
    check_pixels(width, height, max_pixels)
    return _webp_orientation(f, size)


def _webp_orientation(f: BinaryIO, size: int) -> int:
    position = 12
    for _ in range(_MAX_PARTS):
        f.seek(position)
        head = f.read(8)
        if len(head) < 8:
            return 1
        kind, length = struct.unpack("<4sI", head)
        if kind == b"EXIF":
            return _orientation(f.read(min(length, _MAX_EXIF + 1)).removeprefix(b"Exif\0\0"))
        position += 8 + length + length % 2
    raise Refusal("has too many chunks", "write it again")


def check_pixels(width: int, height: int, max_pixels: float) -> None:
    """Refuses an image with more pixels than the limit.

    Raises:
        Refusal: it has.
    """
    if width * height > max_pixels:
        raise Refusal(
            f"has {width} x {height} pixels, more than INPUT.MAX_MEGAPIXELS {max_pixels / 1e6:g}",
            "raise that if you trust the file",
        )
