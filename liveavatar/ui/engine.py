"""The one set of weights that all visitors share: loaded, asked for sessions, loaded anew with other settings."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from liveavatar.ui.protocol import Mistake

log = logging.getLogger(__name__)

MOST_PLACES = 64


class Session(Protocol):
    """What the server needs of a live session (see `liveavatar.live.session`). It paces itself."""

    @property
    def stats(self) -> Any: ...

    def push(self, pcm: Any, rate: int | None = None, timeout: float | None = None) -> Any: ...

    def say(self, text: str, voice: str | None = None, timeout: float | None = None) -> Any: ...

    def interrupt(self) -> Any: ...

    def set(self, *, prompt: str) -> Any: ...

    def finish(self) -> Any: ...

    def close(self) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...


class Avatar(Protocol):
    """Models with their weights in place, of which sessions are made."""

    def session(self, image: Any = None, prompt: str | None = None, seed: int | None = None) -> Session: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Budget:
    """Bytes, as the plan has them: of the device, of what all streams share, and of one stream."""

    device: int
    shared: int
    stream: int

    @property
    def places(self) -> int:
        """Streams for which there is room; one is always tried."""
        return max(1, min(MOST_PLACES, (self.device - self.shared) // max(1, self.stream)))


@dataclass(frozen=True)
class Choice:
    """What a visitor may choose that takes loading the model anew."""

    strategy: str
    steps: int
    shift: float

    @property
    def words(self) -> list[str]:
        laid = [] if self.strategy == "single_device" else [f"+strategy={self.strategy}"]
        return [*laid, f"sampler.steps={self.steps}", f"sampler.shift={self.shift:g}"]


@dataclass
class Loaded:
    """An avatar, what the plan says of it, what is told of it on the page, and how many streams it makes in time."""

    avatar: Avatar
    budget: Budget
    choice: Choice
    about: dict[str, Any]
    in_time: int = MOST_PLACES


Load = Callable[[Choice | None], Loaded]


class Engine:
    """Loads with `load`; `state` is loading, ready or failed, and `reason` says why it failed.

    `load` is given None first, for what the command line says.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self.loaded: Loaded | None = None
        self.state, self.reason, self.starts = "loading", "", 0
        self._changing = asyncio.Lock()
        self._opening = threading.Lock()

    async def start(self) -> None:
        """Load for the first time. Raises what loading raises."""
        async with self._changing:
            await self._bring(None)

    async def restart(self, choice: Choice) -> None:
        """Load anew; where that fails, as before. Nobody may be streaming. Raises Mistake with the reason."""
        if self.loaded is not None and self.loaded.about.get("processes", 1) > 1:
            raise Mistake("fixed", "On several processes these settings are those of the command line.", 403)
        if self._changing.locked():
            raise Mistake("busy", "The model is being loaded already: wait a moment.", 409)
        async with self._changing:
            before = self.loaded.choice if self.loaded is not None else None
            await asyncio.to_thread(self._let_go)
            try:
                await self._bring(choice)
            except (ValueError, OSError, RuntimeError) as error:
                log.warning("%s cannot be loaded: %s", choice, error)
                await self._bring(before)
                raise Mistake("cannot", f"That does not work, and all is as it was before: {error}", 422) from error

    async def close(self) -> None:
        """Let the weights go. Sessions must be closed by then."""
        async with self._changing:
            await asyncio.to_thread(self._let_go)

    def open(self, image: Any, prompt: str, seed: int) -> Session:
        """A session of its own for a visitor: blocks while picture and prompt are encoded, one visitor at a time."""
        with self._opening:
            if self.loaded is None or self.state == "failed":
                raise Mistake("not_ready", self.reason or "The model is not loaded yet: wait a moment.", 503)
            return self.loaded.avatar.session(image=image, prompt=prompt, seed=seed)

    def broke(self, error: BaseException) -> None:
        """A session broke off. Several processes are not in step any more then, and nobody can go on."""
        if self.loaded is not None and self.loaded.about.get("processes", 1) > 1:
            self.state, self.reason = "failed", f"The model cannot go on: {error}. Start the server again."

    async def _bring(self, choice: Choice | None) -> None:
        self.state, self.reason = "loading", ""
        began = time.perf_counter()
        try:
            self.loaded = await asyncio.to_thread(self._load, choice)
        except BaseException as error:
            self.state, self.reason = "failed", f"The model cannot be loaded: {error}"
            raise
        self.state, self.starts = "ready", self.starts + 1
        words = "the model is ready after %.1f s: memory for %d streams at once, time for %d"
        log.info(words, time.perf_counter() - began, self.loaded.budget.places, self.loaded.in_time)

    def _let_go(self) -> None:
        loaded, self.loaded, self.state = self.loaded, None, "loading"
        if loaded is not None:
            loaded.avatar.close()
