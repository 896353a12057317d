"""The files of a data set that consists of many: which there are, whether they have changed, and their content."""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from clq.errors import UserError, reason_of
from clq.utils.files import open_regular

# What people have as images. Those that cannot be read are listed too, so that a message names them.
_READ = (".bmp", ".jpe", ".jpeg", ".jpg", ".png", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
_NOT_READ = (".avif", ".gif", ".heic", ".heif", ".jp2")
IMAGES = _READ + _NOT_READ
_MIB = 1 << 20
_MAX_MIB = 8  # of the annotations of one image, which take a few KiB


class File(NamedTuple):
    """A file.

    Attributes:
        name: its path, relative to the folder that was searched, with ``/``.
        modified: time of modification in ns.
        size: number of bytes.
    """

    name: str
    modified: int
    size: int


def find_files(folder: str, suffixes: tuple[str, ...]) -> list[File]:
    """The files of a folder and its subfolders, through links too, by name. Hidden ones, such as ``._a.xml``, are not.

    Args:
        folder: the folder.
        suffixes: endings of their names in lower case.

    Raises:
        UserError: a folder cannot be listed.
    """
    found: list[File] = []
    pending, seen = [""], set[tuple[int, int]]()
    try:
        while pending:
            inside = pending.pop()
            status = os.stat(os.path.join(folder, inside))
            if (status.st_dev, status.st_ino) in seen:  # a link to a folder that contains it
                continue
            seen.add((status.st_dev, status.st_ino))
            for name, entry in _entries(os.path.join(folder, inside)):
                if entry.is_dir():
                    pending.append(f"{inside}{name}/")
                elif name.lower().endswith(suffixes):
                    found.append(File(f"{inside}{name}", *_stat(entry.path)))
    except OSError as e:
        where = e.filename or folder
        raise UserError(f"folder {where}: cannot be listed ({reason_of(e)}); correct its permissions.") from e
    return sorted(found)


def _entries(folder: str) -> Iterator[tuple[str, os.DirEntry]]:
    with os.scandir(folder) as entries:
        yield from ((entry.name, entry) for entry in entries if not entry.name.startswith("."))


def _stat(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:  # a link to nothing; whoever reads it reports it
        return 0, 0
    return status.st_mtime_ns, status.st_size


def file_at(path: str) -> File:
    """A file whose name is its path."""
    return File(path, *_stat(path))


def digest(content: Any) -> str:
    """Digest of values that json can hold, such as files."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_small(path: str) -> bytes:
    """Reads a file that describes one image or one data set.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large.
    """
    with open_regular(path) as f:
        content = f.read(_MAX_MIB * _MIB + 1)
    if len(content) > _MAX_MIB * _MIB:
        raise ValueError(f"it has more than {_MAX_MIB} MiB")
    return content


def read_lines(path: str) -> list[str]:
    """Reads the lines of a small text file in UTF-8, without space around them.

    Raises:
        OSError, ValueError: as :func:`read_small`, or it is not UTF-8.
    """
    return [line.strip() for line in read_small(path).decode("utf-8-sig").splitlines()]


def finite(text: str | None) -> float | None:
    """The finite number that a text is; None if it is none."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
