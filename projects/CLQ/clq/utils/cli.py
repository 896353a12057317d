"""Shared by the command-line tools: argument types, variants, and the report of a user's mistake in one line."""

import argparse
import re
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from clq.errors import Interrupted, UserError
from clq.utils import early_signals


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


@dataclass(frozen=True)
class Variant:
    """A configured detector, as a command line names it.

    Attributes:
        name: name that tables show.
        config_file: path of the variant's config; None if there are only overrides.
        opts: overrides KEY, VALUE, ... of the config, as text.
    """

    name: str
    config_file: str | None
    opts: tuple[str, ...]


def parse_variant(text: str) -> Variant:
    """Parses ``[NAME=][CONFIG.yaml] [KEY VALUE ...]``, an argument of ``--variants``.

    Without a name, the variant is called after its config file, or after its overrides if it has no config.

    Raises:
        UserError: there is neither a config nor an override, or a quotation is not closed.
    """
    # An equals sign after a config or a key belongs to the value of an override and does not end a name.
    named = re.match(r"(?![^\s=]+\.ya?ml\s|[A-Z0-9_]+\.[A-Z0-9_.]+\s)([^=]*)=", text)
    name, rest = (named[1], text[named.end() :]) if named else ("", text)
    try:
        words = shlex.split(rest)
    except ValueError as e:
        raise UserError(f"--variants {text!r}: {e}; close the quotation.") from e
    if not words:
        raise UserError(
            f"--variants {text!r}: write [NAME=]CONFIG.yaml [KEY VALUE ...], for example CLQ=configs/CLQ/x.yaml."
        )
    if not words[0].endswith((".yaml", ".yml")):
        return Variant(name or " ".join(words), None, tuple(words))
    config_file, *opts = words
    return Variant(name or Path(config_file).stem, config_file, tuple(opts))


def run_cli(main: Callable[..., object], *args: object) -> NoReturn:
    """Calls ``main(*args)`` and exits.

    The exit status is the result of ``main`` if that is an integer, else 0. For a :class:`UserError`, the message is
    printed to stderr and the exit status is 2. For a signal, its line is printed and the exit status is 128 + its
    number: 130 for SIGINT, 143 for SIGTERM.
    """
    early_signals.restore()
    try:
        status = main(*args)
    except UserError as e:
        print(f"{sys.argv[0]}: {e}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as e:
        if e.message:
            print(f"{sys.argv[0]}: {e.message}", file=sys.stderr)
        sys.exit(e.exit_status)
    except KeyboardInterrupt:
        print(f"{sys.argv[0]}: SIGINT: ended.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    sys.exit(status if isinstance(status, int) else 0)
