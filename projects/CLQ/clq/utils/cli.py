"""Shared by the command-line tools: argument types, and the report of a user's mistake in one readable line."""

import argparse
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from clq.errors import Interrupted, UserError


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
    printed to stderr and the exit status is 2. For a signal, its line is printed and the exit status is 128 + its
    number: 130 for SIGINT, 143 for SIGTERM.
    """
    try:
        status = main(*args)
    except UserError as e:
        # For an error in a worker process of a data loader, the message is a traceback that ends with the error.
        message = str(e).splitlines()[-1].removeprefix(f"{UserError.__module__}.{UserError.__qualname__}: ")
        print(f"{sys.argv[0]}: {message}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as e:
        if e.message:
            print(f"{sys.argv[0]}: {e.message}", file=sys.stderr)
        sys.exit(e.exit_status)
    except KeyboardInterrupt:
        print(f"{sys.argv[0]}: SIGINT: ended.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    sys.exit(status if isinstance(status, int) else 0)
