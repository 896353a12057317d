"""The structure of WEBP files."""

import io
import struct
from typing import BinaryIO

from clq.data.image_checks.exif import MAX_EXIF, exif_orientation
from clq.data.image_checks.refusal import MAX_PARTS, MIB, Refusal, check_pixels, too_many_parts

_MAX_WEBP = 64 * MIB  # Pillow reads such a file as a whole


def check_webp(f: BinaryIO, max_pixels: float) -> int:
    """Checks the size of the canvas, for which Pillow takes memory at once, and that the file is whole."""
    f.seek(0, io.SEEK_END)
    size = f.tell()
    f.seek(0)
    head = f.read(30)
    if size > _MAX_WEBP:
        raise Refusal(f"has {size / MIB:.0f} MiB, more than is read of a WEBP", "convert it to PNG or JPEG")
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
    return _stored_orientation(f, size)


def _stored_orientation(f: BinaryIO, size: int) -> int:
    position = 12
    for _ in range(MAX_PARTS):
        f.seek(position)
        head = f.read(8)
        if len(head) < 8:
            return 1
        kind, length = struct.unpack("<4sI", head)
        if kind == b"EXIF":
            return exif_orientation(f.read(min(length, MAX_EXIF + 1)).removeprefix(b"Exif\0\0"))
        position += 8 + length + length % 2
    raise too_many_parts("chunks")
