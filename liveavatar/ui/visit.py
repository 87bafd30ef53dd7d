"""One visitor on a WebSocket: messages in, a stream out, and nothing left behind however it ends.

Three parts work for a stream: the listener takes messages, a thread of its own draws chunks from the session, and the
sender packs and sends them. Between the last two is a short queue of raw chunks, so that an interruption can drop what
was not yet sent and the packed stream has no hole.
"""

from __future__ import annotations

import asyncio
import functools
import io
import logging
import time
from typing import Any

import numpy as np
from PIL import Image
from starlette.websockets import WebSocket, WebSocketDisconnect

from liveavatar.types import SPEECH_RATE
from liveavatar.ui.house import House
from liveavatar.ui.packing import Outlet, Piece
from liveavatar.ui.player import Player, asked, closed, finished
from liveavatar.ui.protocol import Message, Mistake, Plain, Play, Say, Set, Start, read_message, read_sound

log = logging.getLogger(__name__)

MALFORMED = 20
"""Mistakes that one connection may make."""

BROKEN = "The stream broke off ({}). What was shown is kept; others are not disturbed. Start again."


class Gone(Exception):
    """The visitor does not take what is sent."""


class Visit:
    """The life of one WebSocket, from its acceptance to its end."""

    def __init__(self, socket: WebSocket, house: House) -> None:
        self.socket, self.house = socket, house
        self.address = socket.client.host if socket.client else ""
        self._speaking, self._packing = asyncio.Lock(), asyncio.Lock()
        self._player: Player | None = None
        self._stream: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._rate, self._heard = 16_000, time.monotonic()

    async def run(self) -> None:
        """Serve until either side has had enough."""
        await self.socket.accept()
        try:
            with self.house.visiting(self):
                await self._tell({"type": "welcome", **self.house.told()})
                self._listener = asyncio.create_task(self._listen())
                await asyncio.wait([self._listener])
                if not self._listener.cancelled():
                    self._listener.result()
        except Mistake as mistake:
            self.house.figures.add("streams_refused_total", why=mistake.code)
            await self._farewell(mistake)
        except (WebSocketDisconnect, Gone, RuntimeError):
            pass  # it has left
        finally:
            if self._listener is not None:
                self._listener.cancel()
            await self._end()

    async def leave(self) -> None:
        """Send the visitor away: the server closes."""
        await self._farewell(Mistake("closing", "The server is closing."))
        await self._end()

    async def _listen(self) -> None:
        mistakes = 0
        while True:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                await self._take(message)
            except Mistake as mistake:
                mistakes += 1
                self.house.figures.add("malformed_total")
                await self._tell(mistake.told())
                if mistakes >= MALFORMED:
                    await self._farewell(Mistake("too_many", f"{mistakes} messages were wrong: connect again."))
                    return

    async def _take(self, message: Any) -> None:
        """One message, of any kind. Raises Mistake for one that cannot be taken."""
        if message.get("bytes") is not None:
            sound = read_sound(message["bytes"])
            self._heard = time.monotonic()
            await asked(self._live().session.push, sound, self._rate, 0)
            return
        given = read_message(message.get("text") or "", self.house.settings)
        if isinstance(given, Start):
            if self._stream is not None:
                raise Mistake("already", "A stream is under way here: open another connection for another one.")
            self._portrait(given.portrait)  # what cannot be is said before anyone waits for it
            self._rate = given.rate
            self._stream = asyncio.create_task(self._whole(given))
        elif isinstance(given, Plain) and given.type == "stop":
            await self._end()
            await self.socket.close(1000)
        else:
            await self._steer(given)

    async def _steer(self, given: Message) -> None:
        player = self._live()
        if isinstance(given, Plain):
            if given.type == "finish":
                await asyncio.to_thread(player.session.finish)
                return
            await asyncio.to_thread(player.session.interrupt)
            self.house.figures.add("interruptions_total")
            async with self._packing:  # a chunk that is on its way comes before this message
                await self._tell({"type": "interrupted", "dropped": player.interrupt()})
            return
        session, self._heard = player.session, time.monotonic()
        if isinstance(given, Say):
            await asked(session.say, given.text, given.voice, 0)
            await self._tell({"type": "saying", "text": given.text})
        elif isinstance(given, Play):
            pcm = self._voice(given.voice)
            await asked(session.push, pcm, SPEECH_RATE, 0)
            await self._tell({"type": "playing", "seconds": len(pcm) / SPEECH_RATE})
        elif isinstance(given, Set):
            await asked(functools.partial(session.set, prompt=given.prompt))
            await self._tell({"type": "set", "prompt": given.prompt})

    def _live(self) -> Player:
        if self._player is None:
            raise Mistake("not_started", "No stream is under way yet: send start first and wait for started.")
        return self._player

    def _portrait(self, name: str) -> bytes:
        if name.startswith("example:"):
            return self.house.example(name.removeprefix("example:"), "picture")
        return self.house.uploads.get(name, "picture").png

    def _voice(self, name: str) -> np.ndarray:
        if name.startswith("example:"):
            return self.house.example_voice(name.removeprefix("example:"))
        return self.house.uploads.get(name, "voice").pcm

    async def _whole(self, start: Start) -> None:
        """A stream from the line to its end; whatever goes wrong is told in words."""
        figures, how = self.house.figures, "left"
        try:
            async with self.house.places.place(self._tell_place):
                await self._tell({"type": "preparing"})
                how = await self._streamed(start)
            await self._tell({"type": "finished"})
            await self.socket.close(1000)
        except Mistake as mistake:
            figures.add("streams_refused_total", why=mistake.code)
            await self._farewell(mistake)
        except ValueError as error:
            how = "failed"
            await self._farewell(Mistake("cannot", str(error)))
        except (WebSocketDisconnect, Gone):
            if self._listener is not None:
                self._listener.cancel()  # nothing that is said gets through: the connection is dropped
        except Exception as error:
            how = "failed"
            log.exception("a stream broke off")
            self.house.engine.broke(error)
            await self._farewell(Mistake("broken", BROKEN.format(type(error).__name__)))
        finally:
            figures.add("streams_ended_total", how=how)

    async def _streamed(self, start: Start) -> str:
        image = Image.open(io.BytesIO(self._portrait(start.portrait))).convert("RGB")
        began = time.monotonic()
        session = await finished(asyncio.to_thread(self.house.engine.open, image, start.prompt, start.seed))
        player = Player(session, asyncio.get_running_loop())
        outlet = Outlet(start.format, self.house.sinks(start.format))
        try:
            self._player, self._heard = player, time.monotonic()
            player.start()
            await self._tell({"type": "ready"})
            return await self._show(player, outlet, began)
        finally:
            self._player = None
            player.ended.set()
            self._add_up(player)
            await asyncio.shield(asyncio.to_thread(closed, player, outlet))

    async def _show(self, player: Player, outlet: Outlet, began: float) -> str:
        """Pack and send what the player draws, until the session or the time allowed is over."""
        at, begun, over = 0.0, False, ""
        while not over:
            epoch, item = await player.queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                break
            async with self._packing:
                if epoch != player.epoch:
                    continue
                data = await asyncio.to_thread(outlet.pack, item)
                if data and not begun:
                    begun = True
                    await self._begun(item, outlet.mime, time.monotonic() - began)
                if data:  # the encoders may hold back a first piece that is very short
                    told = {"type": "chunk", "at": round(at, 3), "seconds": item.seconds, **item.told}
                    await self._send(told | self.house.meters(player), data)
            at += item.seconds
            self._count(item)
            for name, error in outlet.fresh_failures():
                self.house.figures.add("recordings_failed_total")
                words = f"The {name} on the server stopped ({error}). The stream goes on."
                await self._tell({"type": "notice", "message": words})
            over = self._over(player)
        if tail := await asyncio.to_thread(outlet.pack, None):
            await self._send({"type": "chunk", "at": round(at, 3), "seconds": 0.0, "tail": True}, tail)
        if over:
            await self._tell({"type": "notice", "message": over})
        return "finished"

    async def _begun(self, piece: Piece, mime: str, seconds: float) -> None:
        height, width = piece.frames.shape[1:3]
        if not mime:
            raise Mistake("no_h264", "This server's FFmpeg has no libx264: ask for format jpeg.", 501)
        self.house.figures.add("streams_started_total")
        self.house.figures.add("first_chunk_seconds_sum", seconds)
        told = {"mime": mime, "width": width, "height": height, "fps": piece.fps, "first_chunk_s": round(seconds, 3)}
        await self._tell({"type": "started", **told})

    def _count(self, piece: Piece) -> None:
        figures = self.house.figures
        figures.add("chunks_total")
        figures.add("frames_total", len(piece.frames))
        figures.add("chunk_seconds_sum", sum(piece.told["timings"].get(part, 0) for part in ("denoise", "decode")))

    def _add_up(self, player: Player) -> None:
        stats = player.session.stats
        self.house.figures.add("stalls_total", stats.stalls)
        self.house.figures.add("stalled_seconds_total", stats.stall_s)

    def _over(self, player: Player) -> str:
        """Why the stream must end now; empty while it may go on."""
        settings = self.house.settings
        if player.shown_s > settings.stream_minutes * 60:
            return f"A stream lasts {settings.stream_minutes:g} minutes at most. Start again to go on."
        if time.monotonic() - self._heard > settings.idle_minutes * 60:
            return f"Nothing was said for {settings.idle_minutes:g} minutes, so others may have the place."
        return ""

    async def _tell_place(self, number: int) -> None:
        await self._tell({"type": "queued", "place": number, "busy": self.house.busy()})

    async def _tell(self, message: dict[str, Any]) -> None:
        async with self._speaking:
            await self._patiently(self.socket.send_json(message))

    async def _send(self, told: dict[str, Any], data: bytes) -> None:
        """What is told of a chunk, and its bytes right behind it."""
        async with self._speaking:
            await self._patiently(self.socket.send_json(told | {"bytes": len(data)}))
            await self._patiently(self.socket.send_bytes(data))
        self.house.figures.add("sent_bytes_total", len(data))

    async def _patiently(self, sending: Any) -> None:
        try:
            async with asyncio.timeout(self.house.settings.patience_s):
                await sending
        except TimeoutError:
            raise Gone from None
        except RuntimeError as error:  # sent after the end
            raise Gone from error

    async def _farewell(self, mistake: Mistake) -> None:
        """Say why, and close; of a visitor who is gone nothing is expected."""
        try:
            await self._tell(mistake.told())
            await self._patiently(self.socket.close(1008 if mistake.code == "too_many" else 1000))
        except (WebSocketDisconnect, Gone, RuntimeError):
            pass

    async def _end(self) -> None:
        """Stop the stream, if there is one, and wait until its session is closed."""
        stream, self._stream = self._stream, None
        if stream is None or stream is asyncio.current_task():
            return
        stream.cancel()
        await asyncio.wait([stream])
