"""The structure of JPEG files."""

import re
import struct
from typing import BinaryIO

from clq.data.image_checks.exif import MAX_EXIF, exif_orientation
from clq.data.image_checks.refusal import MAX_PARTS, Refusal, check_metadata, too_many_parts

# Limits on what takes time: bytes before a marker that mean nothing, scans, and segments between and after scans.
_MAX_FILL, _MAX_SCANS, _MAX_SEGMENTS = 4096, 500, 10_000
_BLOCK = 1 << 16
# Among pixels, FF 00 is a value and FF D0 to FF D7 are places to restart; other markers begin or end a segment.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")


def check_jpeg_header(f: BinaryIO) -> int:
    """Walks the segments of a JPEG file up to its pixels, and leaves the file there; returns the orientation."""
    block, metadata = b"", 0
    f.seek(2)
    for _ in range(MAX_PARTS):
        marker = _next_marker(f)
        if marker == 0xD9:
            raise Refusal("has no pixels")
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        length = _segment_length(f)
        if marker == 0xDA:
            f.seek(length, 1)
            return exif_orientation(block) if block else 1
        metadata += length
        check_metadata(metadata)
        if marker not in (0xE1, 0xE2):
            f.seek(length, 1)
            continue
        segment = f.read(length)
        if marker == 0xE1 and segment.startswith(b"Exif\0\0") and len(block) <= MAX_EXIF:
            block += segment[6:]
        elif marker == 0xE2 and segment.startswith(b"MPF\0"):
            exif_orientation(segment[4:])  # the list of further pictures, of the same structure, which Pillow reads
    raise too_many_parts("segments")


def _next_marker(f: BinaryIO) -> int:
    marker = f.read(2)
    for _ in range(_MAX_FILL):
        if marker[1:] != b"\xff":
            break
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


def check_jpeg_end(f: BinaryIO) -> None:
    """Follows the scans of a JPEG file to the marker that ends it, which a file that is cut off lacks."""
    check_jpeg_header(f)
    position, scans = f.tell(), 1
    for _ in range(_MAX_SEGMENTS):
        marker, position = _find_marker(f, position)
        if marker == 0xD9:
            return
        position += 2 + _segment_length(f)  # a table, a comment, or the next scan of a progressive image
        scans += marker == 0xDA
        if scans > _MAX_SCANS:
            raise Refusal(f"has more than {_MAX_SCANS} scans", "write it again")
    raise too_many_parts("segments")


def _find_marker(f: BinaryIO, position: int) -> tuple[int, int]:
    """The next marker among pixels and the position behind it, to which the file is moved."""
    while True:
        f.seek(position)
        block = f.read(_BLOCK)
        if found := _MARKER.search(block):
            f.seek(position + found.end())
            return found[0][1], position + found.end()
        if len(block) < 2:
            raise Refusal("is cut off")
        position += len(block) - block.endswith(b"\xff")
