"""Batches on their way to the devices while the step before them runs."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_PATIENCE = 5.0


class Prefetch:
    """Runs an iterator in a thread, `depth` items ahead, and counts the time waited for it.

    Attributes:
        waited: seconds that `get` has waited.
        error: what the iterator raised, once `get` has come to it.
    """

    def __init__(self, items: Iterator[Any], place: Callable[[Any], Any], depth: int = 2):
        self.waited = 0.0
        self.error: Exception | None = None
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items, place), daemon=True)
        self._thread.start()

    def get(self, unless: Callable[[], bool]) -> Any:
        """The next item; None after an error, or once `unless` says so while there is none."""
        start = time.perf_counter()
        try:
            while self.error is None:
                try:
                    item = self._queue.get(timeout=0.1)
                except queue.Empty:
                    if unless():
                        return None
                    continue
                if not isinstance(item, Exception):
                    return item
                self.error = item
            return None
        finally:
            self.waited += time.perf_counter() - start

    def close(self) -> None:
        """Ends the thread, after the item that it is at; waits some seconds for that, at most."""
        self._closed.set()
        deadline = time.monotonic() + _PATIENCE
        while self._thread.is_alive() and time.monotonic() < deadline:
            try:
                self._queue.get(timeout=0.1)
            except queue.Empty:
                continue

    def _run(self, items: Iterator[Any], place: Callable[[Any], Any]) -> None:
        try:
            for item in items:
                self._queue.put(place(item))
                if self._closed.is_set():
                    return
        except Exception as error:  # raised where the items are used
            self._queue.put(error)
