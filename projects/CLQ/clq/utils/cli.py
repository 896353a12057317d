"""What the command lines share: counts as arguments, and mistakes of the user in one readable line."""

import argparse
import sys
from collections.abc import Callable

from clq.errors import UserError


def positive(text: str) -> int:
    """A count on the command line, for argparse."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be at least 1")
    return value


def count(text: str) -> int:
    """As :func:`positive`, or 0."""
    return 0 if text == "0" else positive(text)


def run_cli(main: Callable, *args) -> None:
    """Calls ``main(*args)`` and exits: with what it returns if that is an int, with 2 and one line for a UserError."""
    try:
        status = main(*args)
    except UserError as e:
        # From a data loader's process it comes as the last line of a traceback.
        message = str(e).splitlines()[-1].removeprefix(f"{UserError.__module__}.{UserError.__qualname__}: ")
        print(f"{sys.argv[0]}: {message}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)
