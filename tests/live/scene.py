"""A clock that goes only when it is told to, and small sessions on the micro model."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from liveavatar.live.avatar import Avatar
from liveavatar.live.session import LiveSession
from liveavatar.live.settings import LiveSettings
from tests.running import SMALL, speech

BLOCK_S = 0.48
HEARS = ("speech.context=window", "speech.left_s=0.4", "speech.right_s=0.2", "speech.norm_s=1.0")
WORDS = (*SMALL[1:], *HEARS, "memory.text=resident", "request.prompt=A person speaks.")


class FakeClock:
    """Time passes in `wait` and `spend` alone; what was planned for a moment happens when it comes."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._plans: list[tuple[float, int, Callable[[], Any]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self.time

    def plan(self, after: float, action: Callable[[], Any]) -> None:
        heapq.heappush(self._plans, (self.time + after, next(self._order), action))

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        until = math.inf if seconds is None else self.time + seconds
        if self._plans and self._plans[0][0] <= until:
            self._happen()
        else:
            assert until < math.inf, "it would wait for ever"
            self.time = until

    def spend(self, seconds: float) -> None:
        until = self.time + seconds
        while self._plans and self._plans[0][0] <= until:
            self._happen()
        self.time = max(self.time, until)

    def _happen(self) -> None:
        when, _, action = heapq.heappop(self._plans)
        self.time = max(self.time, when)
        action()


class Slow:
    """A decoder that takes time."""

    def __init__(self, within: Any, clock: FakeClock, seconds: Callable[[], float]) -> None:
        self.within, self.clock, self.seconds = within, clock, seconds

    def push(self, index: int, latents: Any) -> Iterator[Any]:
        self.clock.spend(self.seconds())
        yield from self.within.push(index, latents)

    def flush(self) -> Iterator[Any]:
        yield from ()


def alive(avatar: Avatar, image: Path, cost: float = 0.2, **settings: Any) -> tuple[LiveSession, FakeClock]:
    """A session that goes on through silence, with a block that takes `cost` seconds."""
    clock = FakeClock()
    given = LiveSettings(**({"silence": "keep_alive"} | settings))
    session = avatar.session(image, settings=given, clock=clock, decode=False)
    assert session.stream is not None
    session.stream.decoding = Slow(session.stream.decoding, clock, lambda: cost)
    return session, clock


def pcm(seconds: float, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    """A voice as 16-bit samples, none of which is zero."""
    sound = (speech(seconds, seed, rate) * 20_000).astype(np.int16)
    sound[sound == 0] = 1
    return sound
