"""What the hrnet-* commands, train.py, eval.py, predict.py and python -m hrnet_jax.* run.

May import every room; no room imports it.
"""

import os
import sys
from typing import Any


def _stopped(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
    """Ctrl-C while the imports of a command take their seconds: no traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print('stopped', file=sys.stderr, flush=True)
        os._exit(130)
    sys.__excepthook__(kind, error, traceback)


if not sys.flags.interactive and sys.excepthook is sys.__excepthook__:
    sys.excepthook = _stopped
