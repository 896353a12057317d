"""The one exception for mistakes that the user can mend."""


class UserError(Exception):
    """A mistake in the input: a file, a key, a data set, a checkpoint.

    The message is one readable line that names what is at fault and what to do next. Command lines print it without a
    traceback and exit with status 2 (see :func:`clq.engine.launch.run_cli`).
    """
