"""The structure of PNG files."""

import struct
import zlib
from typing import BinaryIO

from clq.data.image_checks.exif import exif_orientation
from clq.data.image_checks.refusal import MAX_PARTS, MIB, Refusal, check_metadata, too_many_parts


def check_png(f: BinaryIO, verify: bool) -> int:
    """Walks the chunks of a PNG file to its end.

    Args:
        f: the file.
        verify: whether to read the chunks and verify their checksums.

    Returns:
        The orientation of its EXIF data.
    """
    position, metadata, orientation = 8, 0, 1
    for _ in range(MAX_PARTS):
        f.seek(position)
        head = f.read(8)
        if len(head) < 8:
            raise Refusal("is cut off")
        length, kind = struct.unpack(">I4s", head)
        position += 12 + length
        metadata += 0 if kind == b"IDAT" else 12 + length
        check_metadata(metadata)
        if verify:
            _verify_chunk(f, kind, length)
        elif kind == b"eXIf":
            orientation = exif_orientation(f.read(length))
        if kind == b"IEND":
            return orientation
    raise too_many_parts("chunks")


def _verify_chunk(f: BinaryIO, kind: bytes, length: int) -> None:
    checksum, left = zlib.crc32(kind), length
    while left:
        block = f.read(min(left, MIB))
        if not block:
            raise Refusal("is cut off")
        checksum, left = zlib.crc32(block, checksum), left - len(block)
    if f.read(4) != struct.pack(">I", checksum):
        raise Refusal(f"is damaged: the checksum of its chunk {kind!r} is wrong")
