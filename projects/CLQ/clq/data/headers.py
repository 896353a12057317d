"""The headers of all image files of a data set, read in parallel and remembered."""

import itertools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tqdm import tqdm

from clq.data.images import ImageError, read_size
from clq.utils.cache import recall, remember

_THREADS = 8  # they also wait for a slow file system together
_CHUNK = 64  # files that a thread takes at once
_SHOW_PROGRESS = 2000  # files
_KIND, _VERSION = "headers", "2"  # of what is remembered


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
    :func:`~clq.utils.cache.cache_folder`, in one file for each folder of images.

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
        self._changed = False
        known = recall(_KIND, self._folder, _VERSION)
        self._files: dict[str, list[int]] = known if _are_numbers(known) else {}

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
        if self._changed:
            remember(_KIND, self._folder, _VERSION, self._files)


def _are_numbers(files: object) -> bool:
    """Whether this is what was remembered: four integers for each file."""
    if not isinstance(files, dict) or not all(isinstance(numbers, list) for numbers in files.values()):
        return False
    numbers = itertools.chain.from_iterable(files.values())
    return {type(n) for n in numbers} <= {int} and {len(numbers) for numbers in files.values()} <= {4}
