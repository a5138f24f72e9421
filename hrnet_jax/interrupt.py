"""Ending a long run politely: the first signal asks it to stop, the second ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """While entered, SIGTERM and Ctrl-C set `number` instead of ending the process.

    A thread gets them from the C handler, so that the second is obeyed even while the main thread
    waits in a collective. Enter it after `jax.distributed.initialize`, which catches SIGTERM too.
    """

    def __init__(self) -> None:
        self.number: int | None = None

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
        while data := os.read(reader, 1):
            if data[0] not in SIGNALS:
                continue
            if self:
                os._exit(128 + data[0])
            self.number = data[0]
        os.close(reader)
