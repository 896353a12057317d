"""Writing files so that a reader never sees half of one, and reading files that nobody vouches for."""

import contextlib
import glob
import json
import os
import re
import stat
from collections.abc import Iterator
from io import BufferedReader
from typing import IO, Any

from clq.errors import UserError, reason_of

TEMPORARY = ".clq-tmp"  # ending of the names of temporary files
_MIB = 1 << 20
# What people give as json by mistake, by how it begins.
_NOT_JSON = (
    (rb"\xff\xfe|\xfe\xff", "text in UTF-16; save it as UTF-8"),
    (rb"\x80[\x02-\x05]", "a pickle of Python, which is never loaded; convert it to json"),
    (rb"\s*<", "XML or a web page; convert it to json"),
    (rb"PK\x03\x04|\x1f\x8b|BZh|\xfd7zXZ", "a compressed archive; unpack it"),
    (rb"version https://git-lfs", "a pointer of Git LFS; run `git lfs pull`"),
    (rb"%YAML|---|[A-Za-z_]+:(\s|$)", "yaml; convert it to json"),
)


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Opens a temporary file that takes the place of ``path`` when the block ends without an error.

    The content is on the disk before the file gets its name. If the process is killed or the disk is full, ``path``
    remains what it was before, and an error leaves no temporary file.

    Args:
        path: file to write.
        mode: ``wb`` or ``w`` (UTF-8).

    Raises:
        UserError: the file cannot be written, for example because the disk is full or the folder is gone.
    """
    path = os.fspath(path)
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}{TEMPORARY}")
    try:
        try:
            with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_folder(folder or ".")
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror or e}); free space or choose another folder.") from e


def remove_temporary_files(folder: str) -> None:
    """Removes what a process that was killed in :func:`write_atomically` left in a folder."""
    for path in glob.glob(os.path.join(glob.escape(folder), f".*{TEMPORARY}")):
        with contextlib.suppress(OSError):
            os.unlink(path)


def _sync_folder(folder: str) -> None:
    """Makes a renaming durable, where the file system supports it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def open_regular(path: str | os.PathLike) -> Iterator[BufferedReader]:
    """Opens a file for reading; a pipe or a device, reading which may never end, is refused.

    Raises:
        OSError: the file cannot be opened, or is no regular file.
    """
    with open(path, "rb", opener=_open_at_once) as f:
        if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
            raise OSError(0, "no regular file")
        yield f


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for a writer


class JsonLimit:
    """The largest json that :func:`read_json` reads, which each config sets for its process.

    Data sets are registered for the whole process too, and whatever reads them by name knows no config.
    """

    max_mib = 2048.0


def read_json(path: str | os.PathLike, max_mib: float | None = None) -> Any:
    """Reads a json file in UTF-8, with or without a byte order mark.

    NaN and infinity are read as floats, as Python's ``json`` does.

    Args:
        path: the file.
        max_mib: upper bound on its size in MiB; ``DATASETS.MAX_JSON_MIB`` of the config that was set up last if None.

    Raises:
        UserError: the file cannot be read, is too large, is no json, nests too deeply, or has a key twice.
    """
    limit = JsonLimit.max_mib if max_mib is None else max_mib
    try:
        with open_regular(path) as f:
            size = os.fstat(f.fileno()).st_size
            if size > limit * _MIB:
                raise UserError(
                    f"{path}: has {size / _MIB:.0f} MiB, more than DATASETS.MAX_JSON_MIB {limit:g}; raise that if you "
                    "trust the file."
                )
            content = f.read()
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read ({reason_of(e)}); give a json file.") from e
    if not content.strip():
        raise UserError(f"{path}: is empty; write it again.")
    return _parse_json(path, content)


def _parse_json(path: str | os.PathLike, content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique)
    except RecursionError as e:
        raise UserError(f"{path}: its lists or objects nest too deeply; write it again.") from e
    except MemoryError as e:
        raise UserError(f"{path}: there is not enough memory for its content; split it.") from e
    except ValueError as e:  # JSONDecodeError, UnicodeDecodeError, a number with thousands of digits, a key twice
        for pattern, kind in _NOT_JSON:
            if re.match(pattern, content):
                raise UserError(f"{path}: is not json but looks like {kind}.") from e
        reason = reason_of(e)
        if isinstance(e, json.JSONDecodeError) and e.msg == "Extra data":
            reason += "; one object per line is JSON Lines, which is not read"
        raise UserError(f"{path}: is not valid json ({reason}); write it again.") from e


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of json; Python would keep the last of several equal keys without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {max(keys, key=keys.count)!r} is twice in one object")
    return found
