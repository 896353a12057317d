"""The list of images and annotations that are not used (``DATASETS.ON_ERROR skip``), and its file."""

import json
import logging
import os
from collections.abc import Iterable

from clq.data.formats.findings import LeftOut

logger = logging.getLogger(__name__)

FILE_NAME = "left_out.jsonl"
_files: dict[str, set[str]] = {}  # image files that a check has left out, by the name of the data set


def leave_out(data_set: str, paths: Iterable[str]) -> None:
    """Makes :func:`left_out_files` name these image files, and no others, for a data set."""
    _files[data_set] = set(paths)


def left_out_files(data_set: str) -> set[str]:
    """Paths of the image files of a data set that a check has left out."""
    return _files.get(data_set, set())


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
