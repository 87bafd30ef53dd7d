"""Who may stream now, and who is next."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from liveavatar.ui.protocol import Mistake

Tell = Callable[[int], Awaitable[None]]


class _Waiter:
    def __init__(self, tell: Tell) -> None:
        self.tell, self.turn = tell, asyncio.Event()


class Places:
    """A number of places and a line before them, first come first served. Of one event loop.

    `seats` may change at any time: those who sit stay.
    """

    def __init__(self, seats: int, waiting: int) -> None:
        self.seats, self.longest = seats, waiting
        self.taken = 0
        self.line: list[_Waiter] = []

    @contextlib.asynccontextmanager
    async def place(self, tell: Tell) -> AsyncIterator[None]:
        """Hold a place for the length of a block; `tell` hears one's number in the line, 1 being next.

        Raises Mistake where the line is full.
        """
        if self.line or self.taken >= self.seats:
            await self._wait(tell)
        else:
            self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
            self.advance()

    async def _wait(self, tell: Tell) -> None:
        if len(self.line) >= self.longest:
            raise Mistake("full", f"All places are taken and {len(self.line)} others wait: try again later.", 503)
        waiter = _Waiter(tell)
        self.line.append(waiter)
        try:
            await tell(len(self.line))
            await waiter.turn.wait()
        except BaseException:
            if waiter in self.line:
                self.line.remove(waiter)
                self._tell_all()
            else:  # its turn came while it went away
                self.taken -= 1
                self.advance()
            raise

    def advance(self) -> None:
        """Let in as many as there are free places, and tell the others how far they are."""
        moved = False
        while self.line and self.taken < self.seats:
            self.line.pop(0).turn.set()
            self.taken += 1
            moved = True
        if moved:
            self._tell_all()

    def _tell_all(self) -> None:
        for number, waiter in enumerate(self.line, 1):
            told = asyncio.ensure_future(waiter.tell(number))
            _TOLD.add(told)
            told.add_done_callback(_forget)


_TOLD: set[asyncio.Future[None]] = set()


def _forget(told: asyncio.Future[None]) -> None:
    _TOLD.discard(told)
    if not told.cancelled():
        told.exception()  # of someone who has just left: nobody is there to hear it
