"""What rank 0 tells the others while they wait for it, however long that takes."""

from __future__ import annotations

import pickle
import time
from collections import deque
from itertools import count
from typing import Any

from liveavatar.strategies.faults import Roll

PATIENCE_S = 10.0
"""Seconds for which rank 0 waits for the others to hear its last word."""

_PAUSE_S = 0.01

_SERIES = count()
"""Numbers of series of messages, the same on all ranks: they begin them in the same order."""


class Announcements:
    """Messages from rank 0 to all, in order, through the store at which they have met: no rank waits in a collective,
    which would have to end within `strategy.timeout_s`. A message goes when all have heard it."""

    def __init__(self, roll: Roll, world: int) -> None:
        self.roll, self.world, self._series = roll, world, next(_SERIES)
        self._next = 0
        self._unheard: deque[int] = deque()

    def say(self, message: Any) -> None:
        """On rank 0: one more message for all others."""
        # ranks of one run, which has started them all: what they tell one another is trusted
        self.roll.store.set(self._key("said", self._next), pickle.dumps(message))
        self._unheard.append(self._next)
        self._next += 1
        while self._unheard and self._heard(self._unheard[0]):
            number = self._unheard.popleft()
            self.roll.store.delete_key(self._key("said", number))
            self.roll.store.delete_key(self._key("heard", number))

    def hear(self) -> Any:
        """On every other rank: the next message. Raises ConnectionError when rank 0 has ended."""
        key, pause = self._key("said", self._next), 0.0005
        while not self.roll.store.check([key]):
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE_S)
            if pause == _PAUSE_S and 0 in self.roll.ended():
                raise ConnectionError("rank 0 was waited for")
        message = pickle.loads(self.roll.store.get(key))
        self.roll.store.add(self._key("heard", self._next), 1)
        self._next += 1
        return message

    def wait_heard(self) -> None:
        """On rank 0: wait until all that still run have heard everything: the store ends with this process."""
        end = time.monotonic() + PATIENCE_S
        while self._unheard and not self._heard(self._unheard[-1]):
            if self.roll.ended() or time.monotonic() > end:
                return
            time.sleep(_PAUSE_S)

    def _heard(self, number: int) -> bool:
        return self.roll.store.add(self._key("heard", number), 0) >= self.world - 1

    def _key(self, kind: str, number: int) -> str:
        return f"liveavatar/{kind}/{self._series}/{number}"
