"""Small files that ask for a lot, and the bytes that PNG and TIFF files are made of."""

import struct
import zlib


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, color_type: int, rows: bytes, *extra: bytes, interlaced: int = 0) -> bytes:
    """A PNG file with the chunks ``extra`` before its pixels; ``rows`` have the type of their filter in front."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlaced))
    data = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + data + png_chunk(b"IEND", b"")


def tiff(tags: list[tuple[int, int, int, int]], content: bytes = b"") -> bytes:
    """A TIFF file with one directory: of each tag its id, type, number of values, and value or offset.

    The directory follows the header of 8 bytes, and ``content`` follows the directory.
    """
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + content


def grey_tiff(height: int, rows: int, *tags: tuple[int, int, int, int]) -> bytes:
    """A white TIFF image of 8 x ``height`` pixels of which the only strip has ``rows`` rows, without compression."""
    known = [
        (256, 4, 1, 8),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 0),
        (277, 3, 1, 1),
        (278, 4, 1, rows),
        (279, 4, 1, 8 * rows),
    ]
    every = sorted([*known, *tags])
    start = 8 + 2 + 12 * len(every) + 4
    return tiff([(*tag[:3], start) if tag[0] == 273 else tag for tag in every], b"\xff" * 8 * rows)


def tags_that_share_their_bytes(count: int, size: int) -> bytes:
    """A directory whose tags all point to the same bytes, from the start of the file; it may be EXIF data."""
    return tiff([(40000 + i, 7, size, 0) for i in range(count)], bytes(size))
