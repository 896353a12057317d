"""Writing files so that a reader never sees half of one."""

import contextlib
import glob
import os
from collections.abc import Iterator
from typing import IO

from clq.errors import UserError

TEMPORARY = ".clq-tmp"  # ending of the names of temporary files


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
