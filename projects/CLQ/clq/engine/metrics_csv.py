"""``metrics.csv``, with one row for each iteration that something is logged for."""

import csv
import os
from collections import defaultdict
from collections.abc import Callable

from detectron2.utils.events import EventWriter, get_event_storage

from clq.utils.files import write_atomically

ITERATION = "iteration"
FILE_NAME = "metrics.csv"
_WINDOW = 20  # values of which Detectron2's writers take the median of what is noisy

Rows = dict[int, dict[str, str]]


class ScalarWriter(EventWriter):
    """A writer that gets each value of the storage once, smoothed as in Detectron2's ``metrics.json``."""

    def __init__(self) -> None:
        self._last = -1

    def new_scalars(self) -> dict[int, dict[str, float]]:
        """The values since the last call, by iteration and by name."""
        found: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(_WINDOW).items():
            if iteration > self._last:
                found[iteration][name] = float(value)
        self._last = max((self._last, *found))
        return dict(sorted(found.items()))


class CSVWriter(ScalarWriter):
    """Writes the values of a training to a csv file.

    A new name becomes a new column at the end. A training that is resumed keeps the rows before its first iteration;
    a new one replaces the file.

    Args:
        path: path of the file.
        start: returns the first iteration of this training.
    """

    def __init__(self, path: str, start: Callable[[], int]):
        super().__init__()
        self._path, self._start = path, start
        self._columns: list[str] = []  # none before the first call of write

    def write(self) -> None:
        new = {i: {name: repr(x) for name, x in scalars.items()} for i, scalars in self.new_scalars().items()}
        if not new:
            return
        known = self._columns
        names = dict.fromkeys(name for row in new.values() for name in row)
        if known and names.keys() <= set(known):
            with open(self._path, "a", encoding="utf-8", newline="") as f:
                _write_rows(f, known, new)
            return
        start = self._start()
        columns, rows = read_metrics(self._path) if known or start > 0 else ([], {})
        if not known:
            rows = {iteration: row for iteration, row in rows.items() if iteration <= start}
        for iteration, row in new.items():
            rows[iteration] = {**rows.get(iteration, {}), **row}
        self._columns = list(dict.fromkeys([ITERATION, *columns, *names]))
        with write_atomically(self._path, "w") as f:
            csv.writer(f, lineterminator="\n").writerow(self._columns)
            _write_rows(f, self._columns, rows)


def _write_rows(file, columns: list[str], rows: Rows) -> None:
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    for iteration, row in sorted(rows.items()):
        writer.writerow({ITERATION: iteration, **row})


def read_metrics(path: str | os.PathLike) -> tuple[list[str], Rows]:
    """Reads a ``metrics.csv``, without lines that are not whole.

    Returns:
        The columns, and the values that are not empty of each iteration, as text. Both are empty if there is no file.
    """
    try:
        with open(path, encoding="utf-8", newline="") as f:
            reader = csv.DictReader(f)
            columns, rows = list(reader.fieldnames or []), Rows()
            for row in reader:
                iteration = row.pop(ITERATION, None) or ""
                if iteration.isdecimal() and None not in row and None not in row.values():
                    rows[int(iteration)] = {name: value for name, value in row.items() if value}
    except (OSError, UnicodeDecodeError, csv.Error):  # none, or damaged: it holds nothing that is needed
        return [], {}
    return columns, rows
