"""The structure of PNG files."""

import struct
import zlib
from collections.abc import Iterator
from io import BufferedReader, RawIOBase
from typing import BinaryIO, cast

from clq.data.image_checks.exif import exif_orientation
from clq.data.image_checks.refusal import MAX_PARTS, MIB, Refusal, check_metadata, too_many_parts


def check_png_header(f: BufferedReader) -> int:
    """Walks the chunks of a PNG file to its end without reading its pixels.

    EXIF data may come after the pixels, and the buffer of the file would read 8 KiB for each chunk of pixels, which are
    seldom larger. This goes around the buffer.

    Args:
        f: the file.

    Returns:
        The orientation of its EXIF data.

    Raises:
        Refusal: the file is cut off or has too much metadata.
    """
    raw, orientation = cast(RawIOBase, f.raw), 1
    place = raw.tell()  # where the buffer will read on
    try:
        for kind, length in _chunks(raw):
            if kind == b"eXIf":
                orientation = exif_orientation(raw.read(length))
    finally:
        raw.seek(place)
    return orientation


def check_png_sums(f: BinaryIO) -> None:
    """Reads a PNG file and verifies the checksums of its chunks.

    Raises:
        Refusal: one is wrong, or the file is cut off.
    """
    for kind, length in _chunks(f):
        _verify_chunk(f, kind, length)


def _chunks(f: BinaryIO | RawIOBase) -> Iterator[tuple[bytes, int]]:
    """The type and the length of each chunk; the file is then at the beginning of its content."""
    position = 8
    metadata = 0
    for _ in range(MAX_PARTS):
        f.seek(position)
        head = f.read(8) or b""
        if len(head) < 8:
            raise Refusal("is cut off")
        length, kind = struct.unpack(">I4s", head)
        position += 12 + length
        metadata += 0 if kind == b"IDAT" else 12 + length
        check_metadata(metadata)
        yield kind, length
        if kind == b"IEND":
            return
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


# The passes of an interlaced image: first column, first row, and the steps between columns and rows.
_PASSES = (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def check_png_rows(f: BinaryIO) -> None:
    """Decompresses the pixels of a PNG file once more to see whether there are as many as its header promises.

    Pillow leaves rows black for which there is no data, if the data ends in order.

    Raises:
        Refusal: rows are missing.
    """
    f.seek(16)
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", f.read(13))
    missing = 0
    for x, y, dx, dy in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
        if columns > 0 and rows > 0:
            missing += rows * (1 + (columns * depth * _CHANNELS[color] + 7) // 8)
    decoder = zlib.decompressobj()
    for kind, left in _chunks(f):
        while kind == b"IDAT" and left > 0 and missing > 0:
            block = f.read(min(left, MIB))
            left -= len(block)
            while block and missing > 0:
                missing -= len(decoder.decompress(block, MIB))
                block = decoder.unconsumed_tail
    if missing > 0:
        raise Refusal("is damaged: rows of pixels are missing")
