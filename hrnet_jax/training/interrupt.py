"""Ending a long run politely: the first signal asks it to stop, the second ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from typing import Any

# Signals within so many seconds count as one: a launcher may send one to the process group and one
# to each process.
_SAME = 1.0
_FIRST = 'stopping after the steps under way; once more, after a second, to leave at once'
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """While entered, SIGTERM and Ctrl-C set `number` instead of ending the process.

    Until `armed` is set there is nothing new to save: then the first ends it at once, too.

    A thread gets them from the C handler, so that they are obeyed even while the main thread
    compiles or waits in a collective. Enter it after `jax.distributed.initialize`, which catches
    SIGTERM too.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.armed = False

    def __bool__(self) -> bool:
        return self.number is not None

    @property
    def exit_code(self) -> int:
        return 128 + (self.number or 0)

    def __enter__(self) -> Interrupt:
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._fd = signal.set_wakeup_fd(self._writer)
        self._before: dict[int, Any] = {
            number: signal.signal(number, lambda *_: None) for number in SIGNALS
        }
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd)
        os.close(self._writer)  # ends the thread

    def _watch(self, reader: int) -> None:
        first = 0.0
        while data := os.read(reader, 1):
            if data[0] not in SIGNALS:
                continue
            now = time.monotonic()
            if not self.armed:
                _say('stopped before the first step: nothing new to save')
                os._exit(128 + data[0])
            if self.number is None:
                self.number, first = data[0], now
                _say(_FIRST)
            elif now - first > _SAME:
                os._exit(128 + data[0])
        os.close(reader)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # where nobody reads, a signal is obeyed all the same
        print(line, file=sys.stderr, flush=True)
