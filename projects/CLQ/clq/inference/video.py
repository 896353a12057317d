"""Videos and webcams, which OpenCV reads and writes."""

import logging
import math
import os
from collections.abc import Iterator

import cv2
import numpy as np

from clq.errors import UserError

logger = logging.getLogger(__name__)

_CODECS = {".mp4": "mp4v", ".mkv": "mp4v", ".mov": "mp4v", ".avi": "MJPG"}
_WEBCAM_FPS = 30.0  # of a webcam that does not say its rate
_WINDOW = "detections"


class Video:
    """The frames of a video file or of a webcam.

    Args:
        source: path of a file, or number of a webcam.

    Attributes:
        source: as the argument.
        fps: frames per second.
        length: number of frames that the file claims to have; None of a webcam or where it is unknown.
        size: (width, height) of the frames.

    Raises:
        UserError: the source cannot be opened.
    """

    def __init__(self, source: str | int):
        self.source = source
        live = isinstance(source, int)
        if not live and not os.path.isfile(source):
            raise UserError(f"--video-input {source}: no such file; give a video file.")
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            what = f"--webcam {source}: no such camera" if live else f"--video-input {source}: OpenCV cannot read it"
            raise UserError(f"{what}; {'choose another number' if live else 'convert it, for example to mp4'}.")
        fps, count = self._capture.get(cv2.CAP_PROP_FPS), self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        known = math.isfinite(fps) and fps > 0
        if not known:
            logger.warning("%s does not say its frames per second; %g is assumed.", source, _WEBCAM_FPS)
        self.fps = fps if known else _WEBCAM_FPS
        self.length = int(count) if count > 0 and not live else None
        width, height = (self._capture.get(p) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        self.size = int(width), int(height)

    def frames(self) -> Iterator[np.ndarray]:
        """Yields the frames, (H, W, 3) uint8 RGB. The file is closed at the end; a warning says if frames are missing.

        Raises:
            UserError: there is none, as in a file that is cut off.
        """
        number = 0
        try:
            while True:
                found, frame = self._capture.read()
                if not found:
                    break
                number += 1
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            self._capture.release()
        if not number:
            raise UserError(f"{self.source}: has no frame that can be read; choose another video.")
        if self.length and number < self.length:
            logger.warning(
                "%s: %d of the %d frames that it claims to have could be read; it may be cut off.",
                *(self.source, number, self.length),
            )


class VideoWriter:
    """Writes a video with the rate and the size of another one. It is a context manager, at whose end it is complete.

    Args:
        path: file to write, which ends in .mp4, .mkv, .mov or .avi.
        fps: frames per second.
        size: (width, height) of the frames.

    Raises:
        UserError: the ending is unknown, or OpenCV cannot write the file.
    """

    def __init__(self, path: str, fps: float, size: tuple[int, int]):
        suffix = os.path.splitext(path)[1].lower()
        if suffix not in _CODECS:
            raise UserError(f"--output {path}: a video must end in {', '.join(_CODECS)}; or name a folder.")
        self._path, self._size = path, size
        self._writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*_CODECS[suffix]), fps, size)
        if not self._writer.isOpened():
            raise UserError(f"--output {path}: OpenCV cannot write it; choose another folder or ending.")

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.release()

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame, (H, W, 3) uint8 RGB; one of another size would be dropped by OpenCV without a word."""
        if frame.shape[1::-1] != self._size:
            raise UserError(f"{self._path}: the size of the frames changes within the video; convert it first.")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))


class Closed(Exception):
    """Somebody has closed the window."""


class Window:
    """A window that shows frames until somebody presses Escape or q in it. It is a context manager."""

    def __enter__(self) -> "Window":
        try:
            cv2.namedWindow(_WINDOW, cv2.WINDOW_NORMAL)
        except cv2.error as e:
            raise UserError(
                "--webcam: this OpenCV cannot open a window; write a file with --output, or pip install "
                "opencv-python in place of opencv-python-headless."
            ) from e
        return self

    def __exit__(self, *exception: object) -> None:
        cv2.destroyWindow(_WINDOW)

    def write(self, frame: np.ndarray) -> None:
        """Shows a frame, (H, W, 3) uint8 RGB.

        Raises:
            Closed: somebody has closed the window.
        """
        cv2.imshow(_WINDOW, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        if cv2.waitKey(1) in (27, ord("q")):
            raise Closed
