"""The one kind of error that is the user's to mend."""

from __future__ import annotations

import re
from collections.abc import Sequence


def listed(names: Sequence[str], shown: int = 5, separator: str = ', ') -> str:
    """The first of the names, and how many more there are."""
    more = f' and {len(names) - shown} more' if len(names) > shown else ''
    return separator.join(names[:shown]) + more


def first_line(error: BaseException) -> str:
    """The first line of a library's message, at most 500 characters; if there is none, the name of
    the error. TensorFlow's is without the names of nodes and iterators, and of an assertion only
    what it is meant to say."""
    text = str(getattr(error, 'message', None) or error).strip()
    inner = (
        r'{{.*?}}|\[Op:.*|\[tensorstore_spec=.*|Error in user-defined function .*?Iterator::\S+: |'
        r'assertion failed: \[|\] \[Condition .*'
    )
    line = re.sub(inner, '', text.partition('\n')[0]).strip().rstrip(' .')
    return line[:500] or type(error).__name__


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, and what to do about it.

    The commands print it without a traceback and exit with `exit_code`.
    """

    exit_code = 2


class Unavailable(UserError):
    """Nothing to mend: the same may work later."""

    exit_code = 75  # EX_TEMPFAIL
