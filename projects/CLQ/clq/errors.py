"""The exception for mistakes that the user can correct."""

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """A mistake in what the user provided: a file, a config key, a data set or a checkpoint.

    The message is one readable line that names what is at fault and what to do next. The command-line tools print it
    without a traceback and exit with status 2 (see :func:`clq.utils.cli.run_cli`).
    """


@contextlib.contextmanager
def blamed_on(keys: str) -> Iterator[None]:
    """Turns the exceptions that Detectron2 raises for values it does not accept into a :class:`UserError`.

    Args:
        keys: names of the config keys, or of the file, that the enclosed code reads; the message begins with them.

    Raises:
        UserError: the enclosed code raised an arithmetic, assertion, lookup or value error.
    """
    try:
        yield
    except (ArithmeticError, AssertionError, LookupError, ValueError) as e:
        reason = " ".join(str(e).split())
        raise UserError(f"{keys}: Detectron2 refuses these values ({type(e).__name__} {reason}); correct them.") from e
