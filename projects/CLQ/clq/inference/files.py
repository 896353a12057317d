"""The files that predictions read and write: images that the inputs name, and pictures that are named after them."""

import glob
import os
from collections.abc import Iterator, Sequence

from clq.errors import UserError

_WRITABLE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Of the formats that clq.data.images reads. MPO, which phones write, is read as JPEG, and PBM and the like as PPM.
IMAGE_SUFFIXES = tuple(
    sorted((*_WRITABLE_SUFFIXES, *[".jfif", ".jpe", ".mpo", ".pbm", ".pfm", ".pgm", ".pnm", ".ppm"]))
)


def find_images(inputs: Sequence[str], *, recursive: bool = False) -> list[str]:
    """Finds the image files that the inputs name, without repeating any.

    Args:
        inputs: paths of files, paths of folders, and patterns. A folder stands for the files in it that have the suffix
            of an image; a pattern stands for the files that match it, and ``**`` in it for any number of folders.
        recursive: whether a folder stands for the images in its subfolders, too.

    Returns:
        Paths in the order of the inputs, and sorted within a folder or pattern.

    Raises:
        UserError: an input names no file.
    """
    found: dict[str, str] = {}  # the path as given, by the real path
    for name in inputs:
        paths = _expand(os.path.expanduser(name), recursive)
        if not paths:
            raise UserError(f"{name}: {_explain_no_file(name, recursive)}")
        for path in paths:
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _expand(name: str, recursive: bool) -> list[str]:
    """Returns the paths of the files that an input names."""
    if os.path.isdir(name):
        if recursive:
            paths = sorted(os.path.join(folder, file) for folder, _, files in os.walk(name) for file in files)
        else:
            paths = [os.path.join(name, file) for file in sorted(os.listdir(name))]
        return [p for p in paths if p.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(p)]
    if os.path.exists(name):  # tested before patterns, because a file may be called "tree[1].jpg"
        return [name]
    return [p for p in sorted(glob.glob(name, recursive=True)) if os.path.isfile(p)]


def _explain_no_file(name: str, recursive: bool) -> str:
    if os.path.isdir(os.path.expanduser(name)):
        fix = "choose another folder" if recursive else "give its subfolders, or --recursive, if you need them"
        return f"no image ({' '.join(IMAGE_SUFFIXES)}) in this folder; {fix}."
    if glob.has_magic(name):
        return "no file matches; give image files, folders or patterns as --input."
    return "no such file or folder; give image files, folders or patterns as --input."


def read_lines(descriptor: int) -> Iterator[str]:
    """Reads the lines of a pipe or file as they come, without their ends and without empty ones.

    It is not Python's own file object that is read, because a thread that waits for it keeps the process from ending.

    Args:
        descriptor: descriptor of the open file, such as 0 for the standard input.
    """
    rest = b""
    while chunk := os.read(descriptor, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (os.fsdecode(line) for line in (line.rstrip(b"\r") for line in lines) if line)
    if rest:
        yield os.fsdecode(rest)


class PictureNames:
    """Names pictures after their images: with a number (``tree_2.jpg``) if another image has the same name."""

    def __init__(self) -> None:
        self._taken: set[str] = set()  # in lower case, because some file systems ignore case

    def name(self, path: str) -> str:
        """A file name for the picture of the image at ``path``, which no other picture has."""
        stem, suffix = os.path.splitext(os.path.basename(path))
        if suffix.lower() not in _WRITABLE_SUFFIXES:
            stem, suffix = stem + suffix, ".png"
        name, number = stem + suffix, 1
        while name.lower() in self._taken:
            number += 1
            name = f"{stem}_{number}{suffix}"
        self._taken.add(name.lower())
        return name
