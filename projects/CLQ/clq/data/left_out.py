"""The list of images and annotations that are not used (``DATASETS.ON_ERROR skip``), and its file."""

import json
import logging
import os
from collections.abc import Iterable

from detectron2.config import CfgNode

from clq.data.formats.findings import LeftOut

logger = logging.getLogger(__name__)

FILE_NAME = "left_out.jsonl"
ImageKey = tuple[str, int | str]  # path and id, because the same file may be listed twice, once with a wrong size
_images: dict[str, set[ImageKey]] = {}  # what a check has left out, by the name of the data set


def leave_out(data_set: str, images: Iterable[ImageKey]) -> None:
    """Makes :func:`left_out_images` name these images, and no others, for a data set."""
    _images[data_set] = set(images)


def left_out_images(data_set: str) -> set[ImageKey]:
    """Path and id of the images of a data set that a check has left out because of their files."""
    return _images.get(data_set, set())


def write_left_out(folder: str, entries: Iterable[LeftOut]) -> None:
    """Adds entries to ``left_out.jsonl``, one json object in each line, except for those that it has already.

    The folder must exist. Several processes may add to one file.
    """
    path = os.path.join(folder, FILE_NAME)
    try:
        known = set()
        if os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as f:
                known = set(f.read().splitlines())
        lines = dict.fromkeys(json.dumps(entry._asdict(), default=str) for entry in entries)
        new = [line for line in lines if line not in known]
        if new:
            with open(path, "a", encoding="utf-8") as f:
                f.write("".join(f"{line}\n" for line in new))
    except OSError as e:  # a full disk must not end a training that can go on
        logger.warning("%s: cannot be written (%s)", path, e.strerror or e)


class Reporter:
    """Reports each training image that cannot be used, once: in the log and in ``left_out.jsonl``."""

    def __init__(self, cfg: CfgNode):
        self._name, self._folder = ", ".join(cfg.DATASETS.TRAIN), cfg.OUTPUT_DIR
        self._reported: set[str] = set()

    def __call__(self, path: str, reason: str) -> None:
        if path in self._reported:
            return
        self._reported.add(path)
        logger.warning("left out: %s", reason)
        write_left_out(self._folder, [LeftOut(self._name, path, None, reason)])
