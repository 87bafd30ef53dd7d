"""Turns: whoever asks first is served first, which a plain lock does not promise."""

from __future__ import annotations

import threading
from collections import deque


class Turns:
    """A lock whose waiters come in the order in which they asked. Use as a context."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    def __enter__(self) -> None:
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket:
                    self._changed.wait()
            except BaseException:  # an interrupt while it waits
                self._waiting.remove(ticket)
                self._changed.notify_all()
                raise

    def __exit__(self, *ended: object) -> None:
        with self._changed:
            self._waiting.popleft()
            self._changed.notify_all()
