"""The exceptions for mistakes that the user can correct, and for the end that a signal asks for."""

import contextlib
import signal
from collections.abc import Iterator

# Signals that ask a process to end: Ctrl-C, and both of those that SLURM can send.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class UserError(Exception):
    """A mistake in what the user provided: a file, a config key, a data set or a checkpoint.

    The message is one readable line that names what is at fault and what to do next. The command-line tools print it
    without a traceback and exit with status 2 (see :func:`clq.utils.cli.run_cli`). Names and values from files may be
    part of it: line breaks, other control characters and what no encoding can hold are written as Python writes them.

    Args:
        message: the message.
    """

    def __init__(self, message: str = ""):
        kind = type(self)
        if message.startswith(f"Caught {kind.__name__} in DataLoader"):
            # torch raises the error of a worker process anew, with a traceback as its message that ends with the line.
            message = message.rstrip("\n").rsplit("\n", 1)[-1].removeprefix(f"{kind.__module__}.{kind.__qualname__}: ")
        super().__init__(one_line(message))


class Interrupted(KeyboardInterrupt):
    """A signal has asked the process to end, and what had to be saved is saved.

    It is a KeyboardInterrupt, so that ``except Exception`` does not catch it and a notebook shows it as one.

    Args:
        signum: number of the signal.
        message: one line on what was saved and how to continue; empty where another process reports it.
    """

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum
        self.message = message

    @property
    def exit_status(self) -> int:
        """The exit status that shells report for a process that this signal has ended."""
        return 128 + self.signum


def one_line(text: str) -> str:
    """A text whose unprintable characters, such as line breaks, are written as Python writes them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def reason_of(error: Exception) -> str:
    """What an exception of a library says, in one line of at most 200 characters, for a part of a message.

    Of an error of the operating system, it is the reason alone. An exception that says nothing has its type.
    """
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__


def signal_name(signum: int) -> str:
    """The name of a signal, such as SIGTERM."""
    return signal.Signals(signum).name


def ended_at_once(signum: int) -> str:
    """The line of a process that a signal has ended where there was nothing to save."""
    return f"{signal_name(signum)}: ended before it was done; the same command starts again."


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
