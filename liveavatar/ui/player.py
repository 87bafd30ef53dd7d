"""The thread that draws chunks from a session, and asking a session for things without waiting on the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError as Late
from typing import Any

import numpy as np

from liveavatar.ui.engine import Session
from liveavatar.ui.packing import Outlet, Piece
from liveavatar.ui.protocol import Mistake

log = logging.getLogger(__name__)

QUEUED = 2
"""Chunks that wait to be packed and sent."""

HOW_LONG_S = 60.0
"""Seconds that a session may take to close."""


class Player(threading.Thread):
    """Draws chunks from a session, which paces itself, and keeps at most `QUEUED` of them."""

    def __init__(self, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="liveavatar-player", daemon=True)
        self.session, self.loop = session, loop
        self.queue: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue(QUEUED)
        self.ended, self.epoch, self.shown_s = threading.Event(), 0, 0.0

    def run(self) -> None:
        last: BaseException | None = None
        try:
            self._draw()
        except BaseException as error:  # noqa: BLE001  whatever it is, the visitor is told
            last = error
        self._offer(self.epoch, last)

    def _draw(self) -> None:
        for chunk in self.session:
            epoch = self.epoch
            if self.ended.is_set():
                return
            piece = Piece(chunk.pixels().numpy(), np.asarray(chunk.audio, np.float32), chunk.audio_rate, chunk.fps)
            timings = {name: round(value, 4) for name, value in chunk.timings.items()}
            piece.told = {"index": chunk.index, "timings": timings}
            self.shown_s += piece.seconds
            self._offer(epoch, piece)

    def _offer(self, epoch: int, item: Piece | BaseException | None) -> None:
        """Put it in the queue, unless the visit ends, or an interruption makes it stale, while the queue is full."""
        if self.loop.is_closed():
            return
        waiting = asyncio.run_coroutine_threadsafe(self.queue.put((epoch, item)), self.loop)
        while not self.ended.is_set():
            try:
                waiting.result(0.2)
                return
            except Late:
                continue
        waiting.cancel()

    def interrupt(self) -> int:
        """Drop what is queued; on the loop. Returns how many pieces that were."""
        self.epoch += 1
        dropped, kept = 0, []
        while not self.queue.empty():
            item = self.queue.get_nowait()
            if isinstance(item[1], Piece):
                dropped += 1
            else:
                kept.append(item)
        for item in kept:
            self.queue.put_nowait(item)
        return dropped


async def asked(what: Callable[..., Any], *given: Any) -> None:
    """Ask a session for something, off the event loop. Raises Mistake where it will not."""
    try:
        await asyncio.to_thread(what, *given)
    except TimeoutError:
        raise Mistake("too_much", "So much waits to be spoken that this has no room: wait, or interrupt.") from None
    except ValueError as error:
        raise Mistake("cannot", str(error)) from error


def closed(player: Player, outlet: Outlet) -> None:
    """Close all that a stream had, and wait for its thread."""
    outlet.close()
    player.session.close()
    player.join(HOW_LONG_S)
    if player.is_alive():
        log.error("a session did not end within %.0f s", HOW_LONG_S)


async def finished(work: Any) -> Session:
    """A session that is being opened is waited for, also by a visitor who leaves meanwhile: it must be closed."""
    opening = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        await asyncio.wait([opening])
        if opening.exception() is None:
            await asyncio.to_thread(opening.result().close)
        raise
