"""Where annotated images go: to a folder of pictures, to a video, to a window, or nowhere."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from clq.errors import UserError, reason_of
from clq.inference.files import PictureNames
from clq.inference.results import Result
from clq.inference.streams import Behind
from clq.inference.video import Video, VideoWriter, Window

_QUALITY = 95  # of JPEG pictures
_THREADS, _WAITING = 2, 4


class Output(Protocol):
    """What receives results in their order; what they have drawn may lag behind."""

    def add(self, result: Result, line: str) -> None:
        """Draws a result; ``line`` describes it."""


class _Nothing:
    def add(self, result: Result, line: str) -> None:
        pass


class _Pictures:
    def __init__(self, folder: str, behind: Behind[str]):
        self._folder, self._names, self._behind = folder, PictureNames(), behind

    def add(self, result: Result, line: str) -> None:
        path = result.path or ""
        if os.path.realpath(os.path.dirname(path)) == os.path.realpath(self._folder):
            raise UserError(
                f"--output {self._folder}: has images of --input, which would be overwritten; choose another."
            )
        self._behind.submit(_save, result, os.path.join(self._folder, self._names.name(path)), line)


def _save(result: Result, path: str, line: str) -> str:
    try:
        result.draw(threshold=0).save(path, quality=_QUALITY)
    except OSError as e:
        raise UserError(f"--output {path}: cannot be written ({reason_of(e)}); free space or choose another.") from e
    return f"{line} -> {path}"


class _Frames:
    def __init__(self, behind: Behind[np.ndarray]):
        self._behind = behind

    def add(self, result: Result, line: str) -> None:
        self._behind.submit(lambda: np.asarray(result.draw(threshold=0)))


@contextlib.contextmanager
def open_pictures(folder: str, report: Callable[[str], Any]) -> Iterator[Output]:
    """An output that saves pictures named after their images.

    Args:
        folder: folder of the pictures, which exists.
        report: called with the line of each picture that is saved, and its path.
    """
    with Behind(report, threads=_THREADS, waiting=_WAITING) as behind:
        yield _Pictures(folder, behind)


@contextlib.contextmanager
def open_video(path: str | None, video: Video) -> Iterator[Output]:
    """An output that writes a video like another one.

    Args:
        path: file to write; None shows the frames in a window.
        video: the video that is predicted.

    Raises:
        UserError: the file cannot be written, or there can be no window.
    """
    writer = Window() if path is None else VideoWriter(path, video.fps, video.size)
    with writer, Behind(writer.write, threads=_THREADS, waiting=_WAITING if path else 0) as behind:
        yield _Frames(behind)


@contextlib.contextmanager
def open_nothing() -> Iterator[Output]:
    """An output that draws nothing."""
    yield _Nothing()
