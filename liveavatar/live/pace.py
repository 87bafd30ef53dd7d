"""Time: the clock, and what a player would make of chunks that arrive when they do."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from typing import Protocol

TOLERANCE_S = 0.005


class Clock(Protocol):
    """Seconds that never go back, and waiting. Tests bring their own."""

    def now(self) -> float: ...

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        """Wait, the lock of `condition` held, until it is notified or the seconds are over (None: for ever)."""
        ...


class SystemClock:
    """The monotonic clock: what is set on the clock on the wall does not move it."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        condition.wait(None if seconds is None or seconds == math.inf else seconds)


class Player:
    """Shows each chunk for as long as it lasts, from its arrival on: runs dry where the next one is late.

    `most_s` bounds how far ahead of its showing a chunk may be taken to be: a clock that jumps back must not stop
    the stream for as long.
    """

    def __init__(self, most_s: float) -> None:
        self.most_s = most_s
        self.shown_s = self.stall_s = 0.0
        self.stalls = 0
        self.costs: deque[float] = deque(maxlen=8)
        self._dry: float | None = None

    def due(self, now: float) -> float:
        """When the picture runs dry; at once, before the first."""
        if self._dry is None:
            return now
        self._dry = min(self._dry, now + self.most_s)
        return self._dry

    @property
    def cost(self) -> float:
        """Seconds that a block takes, by the slowest of the last ones."""
        return max(self.costs, default=0.0)

    def arrived(self, now: float, seconds: float, excused: bool) -> None:
        """A chunk is there. Where it is late, that is a stall, unless there was nothing to make it of."""
        dry = self._dry
        if dry is not None and now > dry + TOLERANCE_S and not excused:
            self.stalls += 1
            self.stall_s += now - dry
        self._dry = (now if dry is None else max(now, dry)) + seconds
        self.shown_s += seconds

    @property
    def stall_share(self) -> float:
        return self.stall_s / (self.stall_s + self.shown_s) if self.shown_s else 0.0
