"""The types of values in an annotation file."""

import math

from clq.errors import UserError

LARGEST_ID = 2**63  # what an integer of numpy holds
LARGEST_SIDE = 10**6  # pixels: coordinates beyond this are no coordinates, and float32 cannot tell them apart


def integer(value: object) -> object:
    """The integer of a number such as 5.0, as some tools write integers; any other value as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_number(value: object) -> bool:
    """Whether a value is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that is too large
        return False


def is_text(value: object) -> bool:
    """Whether a value is text that a file or a terminal can hold.

    Json can write halves of characters, such as "\\udcff", which Python makes of file names that are not UTF-8.
    """
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def is_id(value: object) -> bool:
    """Whether a value can identify a record: an integer or text."""
    value = integer(value)
    return is_text(value) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST_ID)


def check_id_types(name: str, kind: str, ids: list) -> None:
    """Checks that all ids are integers or all are text.

    Raises:
        UserError: they are not.
    """
    if len({isinstance(record_id, str) for record_id in ids}) > 1:
        raise UserError(f"data set {name}: some {kind} ids in its json are numbers and some are text; use one type.")
