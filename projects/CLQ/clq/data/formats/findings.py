"""What a check finds in a data set, grouped by kind, and what becomes of it."""

import logging
import math
from dataclasses import dataclass, field
from typing import NamedTuple

from clq.errors import UserError, one_line

logger = logging.getLogger(__name__)

_LONGEST_VALUE = 60  # characters of a value that a message shows


class Places:
    """Where annotations come from that have no ids of their own; they are numbered from 1 on.

    Args:
        unit: what an annotation is in its file: "object" or "line".
    """

    def __init__(self, unit: str):
        self._unit = unit
        self._places: list[tuple[str, int]] = []

    def add(self, path: str, number: int) -> int:
        """Adds an annotation, the one with a number in its file, and returns its id."""
        self._places.append((path, number))
        return len(self._places)

    def __getitem__(self, annotation: int) -> str:
        path, number = self._places[annotation - 1]
        return f"{path}: {self._unit} {number}"


class LeftOut(NamedTuple):
    """An image or an annotation that is not used.

    Attributes:
        data_set: name of the data set.
        image: file of the image, or None where it is unknown.
        annotation: id of the annotation; None if the whole image is left out.
        reason: what is wrong, in one line.
    """

    data_set: str
    image: str | None
    annotation: int | str | None
    reason: str


@dataclass
class Kind:
    """Findings of one kind.

    Attributes:
        first: the first one, in a sentence without its full stop.
        count: number of findings.
    """

    first: str
    count: int = 0


@dataclass
class Findings:
    """What has been found in one data set.

    Attributes:
        name: name of the data set.
        skip: whether faults are left out (``DATASETS.ON_ERROR skip``) rather than refused.
        faults: what cannot be used, by kind.
        notes: what is used, but not as its author may expect, by kind.
        left_out: the images and annotations that are not used.
        file_kind: what its annotations are in, for messages.
        places: where its annotations come from; None if their ids tell.
    """

    name: str
    skip: bool = False
    faults: dict[str, Kind] = field(default_factory=dict)
    notes: dict[str, Kind] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    file_kind: str = "json"
    places: Places | None = None

    def item(self, annotation: int | str) -> str:
        """The name of an annotation for messages."""
        if self.places is not None and isinstance(annotation, int):
            return self.places[annotation]
        return f"annotation {annotation}"

    def fault(self, kind: str, what: str, image: str | None = None, annotation: int | str | None = None) -> None:
        """Adds a fault of an image or, if ``annotation`` is given, of an annotation.

        Args:
            kind: what all faults of its kind have in common: "annotations have no ...".
            what: the fault, with the item, the field, its value and what it must be; no full stop.
            image: file of the image.
            annotation: id of the annotation, or its place where ``places`` does not have it.
        """
        if self.places is not None and isinstance(annotation, int):
            annotation = self.places[annotation]
        _count(self.faults, kind, what)
        self.left_out.append(LeftOut(self.name, image, annotation, what))

    def note(self, kind: str, example: str = "", count: int = 1) -> None:
        """Adds something that is no fault.

        Args:
            kind: as for :meth:`fault`; a sentence on the whole data set if there is no example.
            example: as ``what``.
            count: number of items that it is true of.
        """
        _count(self.notes, kind, example, count)

    def raise_faults(self) -> None:
        """Raises the first fault, with the number of those of its kind, unless faults are left out."""
        if self.skip or not self.faults:
            return
        (kind, first), *others = self.faults.items()
        like = f" ({first.count} {kind})" if first.count > 1 else ""
        more = f" Faults of other kinds: {sum(found.count for _, found in others)}." if others else ""
        raise UserError(
            f"data set {self.name}: {first.first}{like}. Correct it, or set DATASETS.ON_ERROR skip to leave out "
            f"what is faulty.{more}"
        )

    def because(self) -> str:
        """The first fault in words that follow a sentence on what is not left; empty if there is none."""
        for kind, found in self.faults.items():
            return f" Left out: {kind} ({found.count}; the first: {found.first})."
        return ""

    def log(self) -> None:
        """Logs each kind of finding once, with its number and the first of its kind."""
        for kind, found in self.faults.items():
            logger.warning("data set %s: left out: %s (%d; the first: %s)", self.name, kind, found.count, found.first)
        for kind, found in self.notes.items():
            what = f"{kind} ({found.count}; the first: {found.first})" if found.first else kind
            logger.warning("data set %s: %s", self.name, what)


def _count(kinds: dict[str, Kind], kind: str, what: str, count: int = 1) -> None:
    if kind not in kinds:
        kinds[kind] = Kind(one_line(what))  # names of files and values are part of it
    kinds[kind].count += count


def shown(value: object) -> str:
    """A value of a json file with its type, for a message.

    >>> shown("12"), shown(None), shown(True), shown(1.5)
    ("'12' (text)", 'null', 'true', '1.5')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    names = {str: "text", list: "a list", dict: "an object"}
    kind = next((f" ({name})" for of, name in names.items() if isinstance(value, of)), "")
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "an integer of thousands of digits"
    except RecursionError:
        return f"a deeply nested value{kind}"
    return (text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}...") + kind
