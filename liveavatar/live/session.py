"""One live stream: sound is pushed from any thread, chunks are made in the thread that asks for them.

It is long because of what it says of its methods: it is the interface of everything live.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from torch import Tensor

from liveavatar.live.inlet import Inlet, QueueFull
from liveavatar.live.pace import Clock, Player
from liveavatar.live.schedule import Schedule
from liveavatar.live.settings import LiveSettings
from liveavatar.live.sound import LiveSound
from liveavatar.live.stats import LiveStats, Meter
from liveavatar.media.audio import PLAYBACK_RATE
from liveavatar.models.speech import WindowAudio
from liveavatar.session import Piece, Stream
from liveavatar.types import BLOCK_FRAMES, FPS, SPEECH_RATE, VideoChunk

__all__ = ["LiveSession", "Maker", "QueueFull"]

_PLAYED = PLAYBACK_RATE // FPS


class Maker(Protocol):
    """Whoever has the models: makes stretches of a stream, one session at a time, on all ranks."""

    def read(self, prompt: str) -> Tensor: ...

    def speak(self, text: str, voice: str | None) -> Iterable[tuple[np.ndarray, int]]: ...

    def hear(self, window: WindowAudio, block: int) -> Tensor: ...

    def stretch(
        self, session: LiveSession, first: int, features: list[Tensor], prompt: tuple[str, Tensor] | None
    ) -> list[Piece]: ...

    def left(self, session: LiveSession) -> None: ...


class LiveSession:
    """A portrait that speaks what is pushed, as long as it is pushed; made by `Avatar.session`.

    **Threads.** Chunks are made in the thread that iterates, one iteration at a time; `push`, `say`, `interrupt`,
    `set`, `finish`, `close` and `stats` may be called from any other thread at any time, and none of them waits for a
    block, except that `push` waits for room. Sessions of one avatar take turns, a block each, in the order in which
    they ask. Without a second thread: push, `finish`, then iterate.

    **Time.** With `silence=wait` a block is made as soon as its sound is there and it is asked for, and after `finish`
    the stream ends with what was pushed: then it is that of a file, bit for bit (heard through the window). With
    `silence=keep_alive` the avatar goes on through silence, a block just in time before the picture of the last runs
    dry, and is at most `lead_s` ahead while there is sound. Speech that sets in after silence is spoken from the next
    block on that is taken up. Where sound arrives no faster than it is spoken, blocks are made with less look-ahead.

    Iterating gives `VideoChunk`s: `index` counts blocks from `start_block`, `start` frames from 0;
    `timings["latency"]` is the time since the last sample that they needed was pushed. Use as a context, or `close`.
    """

    def __init__(
        self,
        maker: Maker,
        stream: Stream,
        sound: LiveSound,
        window: WindowAudio,
        settings: LiveSettings,
        clock: Clock,
        prompt: str = "",
        number: int = 0,
        most: int = 1,
    ) -> None:
        self.settings, self.clock, self.number, self.info = settings, clock, number, stream.info
        self.stream: Stream | None = stream
        self.first_block = stream.rollout.first_block
        self.error: BaseException | None = None
        self._maker, self._sound, self._words = maker, sound, prompt
        self._changed, self._iterating = threading.Condition(), threading.Lock()
        self._player, self._meter = Player(settings.lead_s + 4 * BLOCK_FRAMES / FPS), Meter()
        self._inlet = Inlet(sound, settings, clock, self._meter, self._changed, self._check_open)
        self._schedule = Schedule(sound, window, settings, clock, self._player, self._meter, most)
        self._began, self._shown, self._closed = clock.now(), 0, False
        self._prompt: tuple[str, Tensor] | None = None
        self._ready: deque[VideoChunk] = deque()

    # ---- what goes in

    def push(self, pcm: object, rate: int | None = None, timeout: float | None = None) -> None:
        """Sound to be spoken, behind what was pushed before.

        Args:
            pcm: int16, int32 or float samples, [samples] or [samples, channels]; bytes are 16-bit little-endian mono.
                Any number of samples: how sound is cut into pushes changes no bit.
            rate: samples per second, any; `live.rate` by default. A change of rate begins a new piece of sound.
            timeout: seconds to wait for room, `live.timeout_s` by default; 0 does not wait.

        Raises:
            QueueFull: `live.queue_s` seconds of sound already wait, and no room was made in time.
            ValueError: for what is no sound, and after `finish` or `close`. Nothing of it was taken.
        """
        given = self.settings
        limit = given.timeout_s if timeout is None else timeout
        self._inlet.push(pcm, given.rate if rate is None else rate, limit)

    def say(self, text: str, voice: str | None = None, timeout: float | None = None) -> None:
        """A text to be spoken, sentence by sentence, by the avatar's `tts`; `voice` is a name that it knows.

        `timeout` is that of each push, by default as long as what waits takes to be spoken. Raises as `push` does, and
        ValueError where there is no such voice.
        """
        with self._changed:
            self._check_open()
            epoch = self._inlet.epoch
        limit = self.settings.queue_s + self.settings.timeout_s if timeout is None else timeout
        for pcm, rate in self._maker.speak(text, voice):
            if epoch != self._inlet.epoch:
                return
            self.push(pcm, rate, limit)

    def interrupt(self) -> float:
        """Take back all sound that was not taken up yet; the avatar falls silent. Returns the seconds dropped.

        The block under way is still shown, its sound faded out, and the next one shuts the mouth. A push that waits for
        room, or a `say` under way, ends with it. Chunks that were handed out are the caller's to drop.
        """
        with self._changed:
            if self._closed:
                return 0.0
            self._inlet.epoch += 1
            dropped = self._schedule.drop(self._shown * _PLAYED)
            for chunk in self._ready:
                chunk.audio[:] = 0
            self._meter.count(dropped_s=dropped, interruptions=1)
            self._changed.notify_all()
        return dropped

    @property
    def prompt(self) -> str:
        """What the stream is told to show; a new one takes effect with the next block."""
        return self._words

    @prompt.setter
    def prompt(self, words: str) -> None:
        self.set(prompt=words)

    def set(self, *, prompt: str) -> None:
        """Change the prompt from the next block on that is taken up.

        Raises ValueError where the strategy divides layers among ranks: the prompt of such a stream is fixed.
        """
        with self._changed:
            self._check_open(finished_too=False)
            stream = self.stream
        assert stream is not None
        stream.rollout.check_prompt_may_change()
        text = self._maker.read(prompt)
        with self._changed:
            self._prompt, self._words = (prompt, text), prompt

    def finish(self) -> None:
        """No more sound will come: the stream ends after what was pushed. Pushing is an error from here on."""
        with self._changed:
            self._schedule.finish()
            self._changed.notify_all()

    def close(self) -> None:
        """End the stream now and let go of its caches. May be called from any thread, and again."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._iterating.acquire(blocking=False):  # else whoever iterates does it
            try:
                self._leave()
            finally:
                self._iterating.release()

    def __enter__(self) -> LiveSession:
        return self

    def __exit__(self, *ended: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def stats(self) -> LiveStats:
        """A reading of what the session has done so far."""
        with self._changed:
            player, sound = self._player, self._sound
            return self._meter.reading(
                shown_s=player.shown_s,
                pushed_s=sound.pushed_s,
                queued_s=sound.queued / SPEECH_RATE,
                stalls=player.stalls,
                stall_s=player.stall_s,
                stall_share=player.stall_share,
                held_bytes=self._held(),
            )

    def _held(self) -> int:
        stream = self.stream
        if stream is None:
            return 0
        parts = stream.rollout.caches.held()
        held = sum(device + host for device, host in parts.values()) + stream.rollout.hoisted_bytes
        state = getattr(stream.decoding, "state", None)
        return held + self._sound.nbytes + (state.nbytes() if state is not None else 0)

    def _check_open(self, finished_too: bool = True) -> None:
        if self.error is not None:
            raise ValueError(f"the session has ended: {self.error}") from self.error
        if self._closed or (self._schedule.finished and finished_too):
            done = "closed" if self._closed else "finished"
            raise ValueError(f"the session is {done}: begin another with avatar.session(…)")

    # ---- what comes out

    def __iter__(self) -> Iterator[VideoChunk]:
        return self

    def __next__(self) -> VideoChunk:
        """The next chunk, as soon as it is made. Raises whatever the making raised; the session is over then."""
        if not self._iterating.acquire(blocking=False):
            raise RuntimeError("another thread takes chunks from this session: share what it takes")
        try:
            asked = self.clock.now()
            while not self._ready:
                count = self._await()
                if not count:
                    self._leave()
                    raise StopIteration
                self._make(count, asked)
            with self._changed:
                return self._ready.popleft()
        except StopIteration:
            raise
        except BaseException as error:
            with self._changed:
                self.error = self.error or error
            self._leave()
            raise
        finally:
            self._iterating.release()
            if self._closed:
                self.close()

    def _leave(self) -> None:
        if self.stream is not None:
            self.stream = None
            self._maker.left(self)
        self._ready.clear()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _await(self) -> int:
        """Wait until blocks may be made: how many, 0 at the end. Their sound is there then, or silence in its place."""
        with self._changed:
            while not self._closed and self._schedule.left > 0:
                wait = self._schedule.patience()
                if wait is not None and wait <= 0:
                    self._changed.notify_all()  # what is taken up makes room for more
                    return self._schedule.take()
                self.clock.wait(self._changed, wait)
        return 0

    def _make(self, count: int, asked: float) -> None:
        """Make blocks that were taken up, and put their chunks where `__next__` finds them."""
        schedule, began = self._schedule, self.clock.now()
        first = schedule.made
        features = [self._maker.hear(schedule.window, first + number) for number in range(count)]
        with self._changed:
            prompt, self._prompt = self._prompt, None
        for piece in self._maker.stretch(self, self.first_block + first, features, prompt):
            self._hand_over(piece, began, asked)
            began = self.clock.now()
        with self._changed:
            schedule.made += count
            self._sound.forget(schedule.window.span(schedule.made)[0], self._shown * _PLAYED)

    def _hand_over(self, piece: Piece, began: float, asked: float) -> None:
        """Frames with the sound under them; what was cut short by `finish` ends where the voice does."""
        frames = piece.decoded.frames[0].transpose(0, 1)
        with self._changed:
            now, total, start = self.clock.now(), self._schedule.total_frames, self._shown
            frames = frames if total is None else frames[: total - start]
            self._shown = end = start + len(frames)
            audio = self._sound.played.read(start * _PLAYED, end * _PLAYED)
            latency = self._note(piece.index, bool(audio.any()), now, began, asked, len(frames))
            self._ready.append(
                VideoChunk(
                    index=piece.index,
                    start=start,
                    frames=frames.float().cpu(),
                    audio=audio,
                    audio_rate=PLAYBACK_RATE,
                    latents={number: latents.float().cpu() for number, latents in piece.decoded.latents.items()},
                    timings={
                        "denoise": piece.denoise_s,
                        "decode": piece.decode_s,
                        "wall": now - began,
                        "latency": latency,
                    },
                )
            )

    def _note(self, index: int, heard: bool, now: float, began: float, asked: float, frames: int) -> float:
        """What a chunk says of the pace; returns the seconds since its sound had come."""
        own = self._schedule.own_end(index - self.first_block)
        arrived, onset = self._sound.arrival(own), self._sound.onset(own)
        latency = now - (began if arrived is None else min(arrived, began))
        due = self._player.due(now)
        # where nobody asked, or there was nothing to make it of, a pause is no stall
        excused = self.settings.silence == "wait" and (asked > due or began > due)
        self._player.arrived(now, frames / FPS, excused)
        self._player.costs.append(now - began)
        since = None if onset is None else now - onset
        self._meter.made(now - began, latency, now - self._began, since, not heard)
        return latency
