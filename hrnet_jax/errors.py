"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, and what to do about it.

    The commands print it without a traceback and exit with `exit_code`.
    """

    exit_code = 2


class Unavailable(UserError):
    """Nothing to mend: the same may work later."""

    exit_code = 75  # EX_TEMPFAIL
