"""The directories of tags of TIFF files and of EXIF data, walked before Pillow loads what they point to."""

import io
import struct
from typing import BinaryIO, NamedTuple

from clq.data.image_checks.refusal import MIB, Refusal

WIDTH, HEIGHT, COMPRESSION, ORIENTATION, ROWS_PER_STRIP, TILE_WIDTH, TILE_LENGTH = 256, 257, 259, 274, 278, 322, 323
_SUB_DIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS, interoperability: Pillow loads these too
# Bytes of a value by its type, and the types whose values are bytes. Others become Python objects, one by one.
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_BYTE_TYPES = (1, 2, 6, 7)
MAX_BYTES, MAX_OBJECT_BYTES, MAX_TAGS = 64 * MIB, 4 * MIB, 4096
MAX_EXIF = MIB  # bytes of the EXIF data of a file that is no TIFF


class BadTags(ValueError):
    """A directory of tags cannot be read: it is cut off or no such directory."""


class TooMuchData(ValueError):
    """The tags point to more data than an image needs. The message says how much."""


class _Layout(NamedTuple):
    """How a directory is laid out: plain TIFF or BigTIFF, in either order of bytes."""

    number: str  # struct format of the number of tags
    entry: str  # of a tag: id, type, number of values
    inline: int  # bytes of a value that is stored in the tag itself
    offset: str


def read_tags(f: BinaryIO) -> dict[int, int]:
    """Walks the first directory of tags and its sub-directories without loading what they point to.

    Pillow loads the values of all tags when it opens a file. Since tags may all point to the same bytes, those of a
    file of 1 MB can take many GB.

    Args:
        f: TIFF file, or EXIF data without its prefix, from the beginning.

    Returns:
        The first value of each tag of the first directory that holds integers of 16 or 32 bits in the tag itself.

    Raises:
        BadTags: this is no TIFF or is cut off.
        TooMuchData: the values would take too much memory.
    """
    f.seek(0)
    head = f.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        raise BadTags("no TIFF header")
    (version,) = struct.unpack(f"{order}H", head[2:4])
    if version == 42:
        layout = _Layout(f"{order}H", f"{order}HHI", 4, f"{order}I")
        (start,) = struct.unpack(layout.offset, head[4:8])
    elif version == 43 and len(head) == 16:
        layout = _Layout(f"{order}Q", f"{order}HHQ", 8, f"{order}Q")
        (start,) = struct.unpack(layout.offset, head[8:16])
    else:
        raise BadTags("no TIFF header")
    return _Walk(f, layout).directory(start, depth=0)


class _Walk:
    """The bytes that the directories of one file point to, added up."""

    def __init__(self, f: BinaryIO, layout: _Layout):
        self.f, self.layout = f, layout
        self.total = self.objects = 0

    def directory(self, start: int, depth: int) -> dict[int, int]:
        """The first values of the tags of one directory, after its sub-directories have been added up."""
        layout, values = self.layout, {}
        (count,) = self._unpack(layout.number, start)
        if count > MAX_TAGS:
            raise TooMuchData(f"{count} tags")
        size = struct.calcsize(layout.entry)
        position = start + struct.calcsize(layout.number)
        for _ in range(count):
            tag, kind, number = self._unpack(layout.entry, position)
            self._add(kind, number)
            if kind in (3, 4, 13) and number >= 1 and number * _TYPE_SIZES[kind] <= layout.inline:
                (values[tag],) = self._unpack(layout.offset[0] + ("H" if kind == 3 else "I"), position + size)
            position += size + layout.inline
        for tag in _SUB_DIRECTORIES:
            if depth < 2 and tag in values:
                try:
                    self.directory(values[tag], depth + 1)
                except BadTags:
                    continue  # Pillow leaves such a sub-directory out
        return values

    def _unpack(self, layout: str, position: int) -> tuple[int, ...]:
        try:
            self.f.seek(position)
            return struct.unpack(layout, self.f.read(struct.calcsize(layout)))
        except (OSError, OverflowError, ValueError, struct.error) as e:
            raise BadTags("its directory of tags is cut off") from e

    def _add(self, kind: int, number: int) -> None:
        size = number * _TYPE_SIZES.get(kind, 8)
        self.total += size
        if kind not in _BYTE_TYPES:
            self.objects += size
        if self.total > MAX_BYTES or self.objects > MAX_OBJECT_BYTES:
            raise TooMuchData(f"{max(self.total, self.objects) / MIB:.0f} MiB of tags")


def exif_orientation(block: bytes) -> int:
    """Reads the orientation in EXIF data.

    Args:
        block: EXIF data, beginning with the header of a TIFF file.

    Returns:
        A number from 1 to 8; 1 if the data cannot be read, which viewers leave out too.

    Raises:
        Refusal: the data would take too much memory.
    """
    if len(block) > MAX_EXIF:
        raise Refusal(f"has {len(block) / MIB:.1f} MiB of EXIF data", "remove its metadata")
    try:
        value = read_tags(io.BytesIO(block)).get(ORIENTATION, 1)
    except BadTags:
        return 1
    except TooMuchData as e:
        raise Refusal(f"its EXIF data has {e}", "remove its metadata") from e
    return value if 1 <= value <= 8 else 1
