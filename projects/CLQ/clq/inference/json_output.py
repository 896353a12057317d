"""Results as json, written while a prediction goes on: after each image, everything up to it is in the file."""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import IO, Any, Protocol

from clq.errors import UserError, reason_of
from clq.inference.results import Result

LINES = (".jsonl", ".ndjson")  # endings of JSON Lines
STDOUT = "-"


class JsonOutput(Protocol):
    """What :func:`open_json` returns."""

    def add(self, image_id: int, result: Result, **more: Any) -> None:
        """Writes the detections of an image."""

    def skip(self, image_id: int, path: str, reason: str) -> None:
        """Writes that an image could not be used, if the format has a place for that."""


class JsonLines:
    """JSON Lines: one object for each image, with the keys ``image_id``, ``file_name``, ``width``, ``height`` and
    ``detections``, or ``image_id``, ``file_name`` and ``error``.

    The detections have the keys of COCO's results, but for those of the image.
    """

    def __init__(self, f: IO[str]):
        self._f = f

    def add(self, image_id: int, result: Result, **more: Any) -> None:
        height, width = result.instances.image_size
        found = result.to_coco(image_id)
        for detection in found:
            del detection["image_id"], detection["file_name"]
        image = {"image_id": image_id, "file_name": result.path, **more, "width": width, "height": height}
        self._write({**image, "detections": found})

    def skip(self, image_id: int, path: str, reason: str) -> None:
        self._write({"image_id": image_id, "file_name": path, "error": reason})

    def _write(self, line: dict[str, Any]) -> None:
        self._f.write(json.dumps(line) + "\n")
        self._f.flush()


class _Nothing:
    def add(self, image_id: int, result: Result, **more: Any) -> None:
        pass

    def skip(self, image_id: int, path: str, reason: str) -> None:
        pass


class CocoList:
    """COCO's results: a list of detections, one on each line. Only the last bracket is missing until the end."""

    def __init__(self, f: IO[str]):
        self._f, self._separator = f, "\n"
        f.write("[")

    def add(self, image_id: int, result: Result, **more: Any) -> None:
        for detection in result.to_coco(image_id):
            self._f.write(self._separator + json.dumps(detection))
            self._separator = ",\n"
        self._f.flush()

    def skip(self, image_id: int, path: str, reason: str) -> None:
        pass

    def close(self) -> None:
        """Completes the list."""
        self._f.write("\n]\n")


@contextlib.contextmanager
def open_json(path: str | None) -> Iterator[JsonOutput]:
    """Opens a file for results, which is complete after the context, even after an exception.

    Args:
        path: the file; None writes nothing. JSON Lines are written if it ends in ``.jsonl`` or ``.ndjson`` or is ``-``,
            the standard output; otherwise a list in COCO's results format.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        yield _Nothing()
        return
    if path == STDOUT:
        yield JsonLines(sys.stdout)
        return
    try:
        with open(path, "w", encoding="utf-8") as f:
            if path.lower().endswith(LINES):
                yield JsonLines(f)
                return
            results = CocoList(f)
            try:
                yield results
            finally:
                results.close()
    except OSError as e:
        raise UserError(f"--json {path}: cannot be written ({reason_of(e)}); free space or choose another.") from e
