"""The headers of all image files of a data set, read in parallel and remembered."""

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tqdm import tqdm

from clq.data.images import ImageError, read_size
from clq.errors import UserError
from clq.utils.files import write_atomically

logger = logging.getLogger(__name__)

_THREADS = 8  # they also wait for a slow file system together
_CHUNK = 64  # files that a thread takes at once
_SHOW_PROGRESS = 2000  # files
_VERSION = 1  # of the files that remember


class Header(NamedTuple):
    """What an image file says about itself.

    Attributes:
        width, height: size of the upright image in pixels.
        num_bytes: size of the file.
    """

    width: int
    height: int
    num_bytes: int


def read_headers(folder: str, paths: Sequence[str], max_megapixels: float) -> list[Header | str]:
    """Reads the headers of image files, except of those that it remembers and that have not changed since.

    A file is the same if its path, its size and its time of modification are. What is remembered is in
    :func:`cache_folder`, in one file for each folder of images.

    Args:
        folder: folder of the data set, by which is remembered what has been read.
        paths: paths of the N files.
        max_megapixels: as in :func:`~clq.data.images.read_size`.

    Returns:
        For each file its header or, if it cannot be used, the reason, in words that follow the name of the file.
    """
    cache = _Cache(folder)
    known: dict[int, Header | str] = {}
    unread: list[tuple[int, str, tuple[int, int]]] = []
    for i, path in enumerate(paths):
        try:
            status = os.stat(path)
        except (OSError, ValueError) as e:  # a name with characters that no file can have
            known[i] = f"cannot be opened ({getattr(e, 'strerror', None) or e})"
            continue
        stamp = status.st_mtime_ns, status.st_size
        size = cache.get(path, stamp)
        if size is not None and size[0] * size[1] <= max_megapixels * 1e6:
            known[i] = Header(*size, status.st_size)
        else:
            unread.append((i, path, stamp))
    for (i, _, stamp), result in zip(unread, _read_all([path for _, path, _ in unread], max_megapixels), strict=True):
        if isinstance(result, str):
            known[i] = result
        else:
            cache.add(paths[i], stamp, result)
            known[i] = Header(*result, stamp[1])
    cache.save()
    return [known[i] for i in range(len(paths))]


def cache_folder() -> str:
    """The folder in which headers are remembered: ``clq`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "clq", "headers")


def _read_all(paths: list[str], max_megapixels: float) -> Iterable[tuple[int, int] | str]:
    def read(path: str) -> tuple[int, int] | str:
        try:
            return read_size(path, max_megapixels=max_megapixels)
        except ImageError as e:
            return str(e).removeprefix(f"image {path}: ").removesuffix("; replace or remove it.").rstrip(".")

    def read_some(some: list[str]) -> list[tuple[int, int] | str]:
        return [read(path) for path in some]

    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    hidden = len(paths) < _SHOW_PROGRESS or None  # None: hidden unless the output is a terminal
    with ThreadPoolExecutor(_THREADS) as pool, tqdm(total=len(paths), desc="image headers", disable=hidden) as bar:
        for results in pool.map(read_some, chunks):
            bar.update(len(results))
            yield from results


class _Cache:
    """The sizes of the images of a folder that have been read before."""

    def __init__(self, folder: str):
        self._folder = os.path.abspath(folder)
        digest = hashlib.sha256(self._folder.encode(errors="surrogateescape")).hexdigest()[:32]
        self._path = os.path.join(cache_folder(), f"{digest}.json")
        self._changed = False
        self._files: dict[str, list[int]] = {}
        try:
            with open(self._path, encoding="utf-8") as f:
                content = json.load(f)
            if content["version"] == _VERSION and content["folder"] == self._folder:
                numbers = list(itertools.chain.from_iterable(content["files"].values()))
                if {type(n) for n in numbers} <= {int} and {len(f) for f in content["files"].values()} <= {4}:
                    self._files = content["files"]
        except FileNotFoundError:
            pass
        except (AttributeError, OSError, ValueError, LookupError, TypeError, RecursionError) as e:
            logger.info("%s: cannot be used (%s); the headers of all images are read again", self._path, e)

    def get(self, path: str, stamp: tuple[int, int]) -> tuple[int, int] | None:
        """(width, height) of a file, unless it is new or its (time of modification, size) has changed."""
        known = self._files.get(path)
        if known is None or known[0] != stamp[0] or known[1] != stamp[1]:
            return None
        return known[2], known[3]

    def add(self, path: str, stamp: tuple[int, int], size: tuple[int, int]) -> None:
        self._files[path] = [*stamp, *size]
        self._changed = True

    def save(self) -> None:
        if not self._changed:
            return
        try:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            with write_atomically(self._path, "w") as f:
                json.dump({"version": _VERSION, "folder": self._folder, "files": self._files}, f)
        except (OSError, UserError, ValueError) as e:
            logger.info("The headers of the images cannot be remembered: %s", e)
