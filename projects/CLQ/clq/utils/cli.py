"""Shared by the command-line tools: argument types, and the report of a user's mistake in one readable line."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from clq.errors import UserError


def positive(text: str) -> int:
    """Parses a positive integer; for the ``type`` argument of argparse.

    Raises:
        ArgumentTypeError: the number is less than 1.
        ValueError: the text is not an integer.
    """
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be at least 1")
    return value


def count(text: str) -> int:
    """Parses a non-negative integer; for the ``type`` argument of argparse. Raises the same as :func:`positive`."""
    return 0 if text == "0" else positive(text)


def run_cli(main: Callable[..., object], *args: object) -> NoReturn:
    """Calls ``main(*args)`` and exits.

    The exit status is the result of ``main`` if that is an integer, else 0. For a :class:`UserError`, the message is
    printed to stderr and the exit status is 2.
    """
    try:
        status = main(*args)
    except UserError as e:
        print(f"{sys.argv[0]}: {message_of(e)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


def message_of(error: UserError) -> str:
    """The one line of an error. That of a data loader's worker process is a traceback that ends with the error."""
    return str(error).splitlines()[-1].removeprefix(f"{UserError.__module__}.{UserError.__qualname__}: ")
