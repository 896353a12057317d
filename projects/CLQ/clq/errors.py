"""The one exception for mistakes that the user can mend."""

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """A mistake in the input: a file, a key, a data set, a checkpoint.

    The message is one readable line that names what is at fault and what to do next. Command lines print it without a
    traceback and exit with status 2 (see :func:`clq.engine.launch.run_cli`).
    """


@contextlib.contextmanager
def blamed_on(keys: str) -> Iterator[None]:
    """Makes a UserError of what Detectron2 raises when it builds something from values that it refuses.

    Args:
        keys: the config keys that it reads.
    """
    try:
        yield
    except (ArithmeticError, AssertionError, LookupError, ValueError) as e:
        reason = " ".join(str(e).split())
        raise UserError(f"{keys}: Detectron2 refuses these values ({type(e).__name__} {reason}); correct them.") from e
