"""Images that are in a training set and in a test set, where they make a detector look better than it is."""

import hashlib
import os
from collections.abc import Callable, Hashable, Iterable, Mapping

_SAMPLE = 4096  # bytes at the end of files of one size that are compared before whole files are


def find_leaks(train: Mapping[str, int], test: Mapping[str, int]) -> list[tuple[str, str]]:
    """Finds test images that are training images, too: the same file, or another one with the same content.

    Files are compared by size, those of one size by their last bytes, and what is still equal by a digest.

    Args:
        train: size in bytes of each file of the training sets, by path.
        test: the same of the test sets.

    Returns:
        Pairs of a training image and the test image that it is equal to, one for each such test image.
    """
    by_path = {os.path.normpath(path): path for path in train}
    leaks = {path: by_path[same] for path in test if (same := os.path.normpath(path)) in by_path}
    ours, theirs = list(train), [path for path in test if path not in leaks]
    stages: list[Callable[[str], Hashable]] = [
        lambda path: train[path] if path in train else test[path],
        lambda path: _digest(path, _SAMPLE),
        _digest,
    ]
    keys: dict[str, tuple] = dict.fromkeys((*ours, *theirs), ())
    for stage in stages:
        for path in (*ours, *theirs):
            keys[path] = (*keys[path], stage(path))
        shared = {keys[path] for path in ours} & {keys[path] for path in theirs}
        ours, theirs = _with(shared, keys, ours), _with(shared, keys, theirs)
    by_content = {keys[path]: path for path in ours}
    leaks.update({path: by_content[keys[path]] for path in theirs})
    return [(leaks[path], path) for path in test if path in leaks]


def _with(shared: set[tuple], keys: Mapping[str, tuple], paths: Iterable[str]) -> list[str]:
    return [path for path in paths if keys[path] in shared]


def _digest(path: str, last: int | None = None) -> bytes | str:
    """Digest of a file, or of its last bytes; the path itself, which equals no other, if the file is gone meanwhile."""
    try:
        with open(path, "rb") as f:
            if last is not None:
                f.seek(max(os.fstat(f.fileno()).st_size - last, 0))
            return hashlib.sha256(f.read()).digest()
    except OSError:  # whoever reads the image reports it
        return path
