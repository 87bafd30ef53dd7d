"""An avatar with the live session's interface and no model: the portrait, with a mouth that opens with the sound."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from liveavatar.live.stats import LiveStats
from liveavatar.types import VideoChunk
from liveavatar.ui.engine import Budget, Choice, Loaded

RATE, FPS, FRAMES, SIDE, QUEUE_S = 16_000, 25, 12, 192, 60
BLOCK = RATE * FRAMES // FPS


class FakeSession:
    """Never ends by itself. Prompts make it misbehave: `raise at N`, `end at N`; `hold` makes no chunk at all."""

    def __init__(self, avatar: FakeAvatar, image: Image.Image, prompt: str, seed: int) -> None:
        if prompt == "refuse":
            raise ValueError("request.prompt: this one is refused")
        self.avatar, self.prompt, self.seed = avatar, prompt, seed
        self.image = image.resize((avatar.side, avatar.side))
        self.heard: list[np.ndarray] = []
        self.pending = np.zeros(0, np.float32)
        self.interrupted, self.finishing, self.closed = 0, False, threading.Event()
        self.said: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self.made = 0
        avatar.open.add(self)

    @property
    def stats(self) -> LiveStats:
        return LiveStats(blocks=self.made, queued_s=len(self.pending) / RATE, onset_s=0.2)

    def push(self, pcm: np.ndarray, rate: int | None = None, timeout: float | None = None) -> None:
        rate = rate or RATE
        if len(self.pending) / RATE + len(pcm) / rate > QUEUE_S:
            raise TimeoutError
        sound = np.interp(np.arange(0, len(pcm), rate / RATE), np.arange(len(pcm)), pcm).astype(np.float32)
        with self._lock:
            self.heard.append(sound)
            self.pending = np.concatenate([self.pending, sound])

    def say(self, text: str, voice: str | None = None, timeout: float | None = None) -> None:
        if voice == "nobody":
            raise ValueError("espeak-ng has no voice of that name")
        self.said.append((text, voice or ""))
        at = np.arange(round(0.08 * RATE * len(text))) / RATE
        self.push(0.4 * np.sin(2 * np.pi * 180 * at) * (0.5 + 0.5 * np.sin(2 * np.pi * 4 * at)))

    def interrupt(self) -> None:
        with self._lock:
            self.interrupted += 1
            self.pending = self.pending[:0]

    def set(self, *, prompt: str) -> None:
        self.prompt = prompt

    def finish(self) -> None:
        self.finishing = True

    def close(self) -> None:
        self.closed.set()
        self.avatar.open.discard(self)

    def __iter__(self) -> Iterator[VideoChunk]:
        word, _, number = self.prompt.partition(" at ")
        began = time.monotonic()
        while not self.closed.wait(max(0, self.made * FRAMES / FPS - self.avatar.lead_s - (time.monotonic() - began))):
            if self.prompt == "hold":
                self.closed.wait()
                return
            if number and self.made == int(number):
                if word == "raise":
                    raise RuntimeError("rank 1 was lost")
                return
            with self._lock:
                sound, self.pending = self.pending[:BLOCK], self.pending[BLOCK:]
            if self.finishing and not len(sound):
                return
            yield self._chunk(np.pad(sound, (0, BLOCK - len(sound))))

    def _chunk(self, sound: np.ndarray) -> VideoChunk:
        frames = []
        for number in range(FRAMES):
            part = sound[number * BLOCK // FRAMES : (number + 1) * BLOCK // FRAMES]
            picture, side = self.image.copy(), self.avatar.side
            wide = min(0.09, 0.3 * float(np.sqrt((part**2).mean())))
            box = (0.42, 0.62 - wide, 0.58, 0.63 + wide)
            ImageDraw.Draw(picture).ellipse([side * edge for edge in box], fill=(90, 20, 30))
            frames.append(np.asarray(picture))
        shown = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 127.5 - 1
        timings = {"denoise": 0.2, "decode": 0.05, "wall": 0.25, "latency": 0.3}
        chunk = VideoChunk(self.made, self.made * FRAMES, shown, sound, RATE, timings=timings)
        self.made += 1
        return chunk


class FakeAvatar:
    """`lead_s` is how far its sessions run ahead of real time."""

    def __init__(self, side: int = SIDE, lead_s: float = 10) -> None:
        self.side, self.lead_s = side, lead_s
        self.open: set[FakeSession] = set()
        self.sessions: list[FakeSession] = []
        self.closed = False

    def session(self, image: Any = None, prompt: str | None = None, seed: int | None = None) -> FakeSession:
        self.sessions.append(FakeSession(self, image, prompt or "", seed or 0))
        return self.sessions[-1]

    def close(self) -> None:
        assert not self.open, "sessions outlive their avatar"
        self.closed = True


class Loader:
    """Loads fakes; `places` is how many streams their plan has room for. A shift of 11 cannot be loaded."""

    def __init__(self, places: int = 2, side: int = SIDE, lead_s: float = 10, processes: int = 1) -> None:
        self.places, self.side, self.lead_s, self.processes = places, side, lead_s, processes
        self.avatars: list[FakeAvatar] = []

    def __call__(self, choice: Choice | None) -> Loaded:
        if choice is not None and choice.shift == 11:
            raise ValueError("sampler.shift=11 cannot be")
        self.avatars.append(FakeAvatar(self.side, self.lead_s))
        budget = Budget(device=1_000_000 * self.places + 400_000, shared=300_000, stream=1_000_000)
        about = {"model": "fake", "weights": "none", "processes": self.processes, "device": "cpu"}
        return Loaded(self.avatars[-1], budget, choice or Choice("single_device", 4, 3.0), about)

    @property
    def avatar(self) -> FakeAvatar:
        return self.avatars[-1]
