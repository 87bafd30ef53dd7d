"""What all visitors share: the engine, the places, the uploads, the counters."""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from liveavatar import __version__
from liveavatar.config import asset
from liveavatar.media.audio import load_voice
from liveavatar.types import SPEECH_RATE, Sink
from liveavatar.ui.choices import EXAMPLES, EXPLAINED, SHIFT, STEPS, STRATEGIES, VOICES, offered
from liveavatar.ui.engine import Choice, Engine, Load
from liveavatar.ui.figures import Figures, own
from liveavatar.ui.places import Places
from liveavatar.ui.protocol import Mistake
from liveavatar.ui.settings import ServerSettings
from liveavatar.ui.uploads import Uploads

log = logging.getLogger(__name__)


class Recording:
    """A sink of packed bytes: the file of one stream, playable up to the last piece written."""

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, None

    def open(self, info: Any) -> None:
        self._file = self.path.open("xb", buffering=0)

    def write(self, chunk: Any) -> None:
        view = memoryview(chunk)
        while view:  # a raw file may take less than it is given, as a full disk first does
            view = view[self._file.write(view) :]  # type: ignore[union-attr]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class House:
    """Everything between the routes and the session API. Made for one event loop.

    `sinks` gives the sinks of a stream of a format, which take packed bytes; None keeps recordings where
    `server.record` says.
    """

    def __init__(
        self, settings: ServerSettings, load: Load, sinks: Callable[[str], dict[str, Sink]] | None = None
    ) -> None:
        self.settings, self.engine, self.figures = settings, Engine(load), Figures()
        self.places, self.uploads = Places(0, settings.waiting), Uploads(settings)
        self.sinks = sinks or self._recordings
        self.visits: set[Any] = set()
        self.failure: BaseException | None = None
        self._by_address: Counter[str] = Counter()
        self._began = time.monotonic()

    async def open(self) -> None:
        """Load the model. Raises what loading raises, and keeps it as `failure`."""
        try:
            await self.engine.start()
        except BaseException as error:
            self.failure = error
            if not isinstance(error, ValueError):
                log.exception("%s", self.engine.reason)
            raise
        self._seat()

    async def change(self, choice: Choice) -> None:
        """Load the model anew, where that disturbs nobody. Raises Mistake."""
        if not self.settings.may_restart:
            raise Mistake("fixed", "Whoever runs this server has fixed these settings (server.restart).", 403)
        if self.places.taken or self.places.line:
            others = self.places.taken + len(self.places.line)
            raise Mistake("in_use", f"{others} streams are under way: this would cut them off. Try again later.", 409)
        self.places.seats = 0  # whoever comes now waits
        try:
            await self.engine.restart(choice)
        finally:
            self._seat()

    async def close(self) -> None:
        for visit in list(self.visits):
            await visit.leave()
        await self.engine.close()
        self.uploads.clear()

    def _seat(self) -> None:
        loaded = self.engine.loaded
        room = 0 if loaded is None else min(loaded.budget.places, self.settings.places or loaded.in_time)
        self.places.seats = room
        self.places.advance()

    @contextlib.contextmanager
    def visiting(self, visit: Any) -> Iterator[None]:
        """Count a visitor in and out. Raises Mistake for one too many of an address."""
        if self._by_address[visit.address] >= self.settings.per_address:
            words = f"{self.settings.per_address} connections of yours are open already: close one."
            raise Mistake("too_many_here", words, 429)
        self._by_address[visit.address] += 1
        self.visits.add(visit)
        try:
            yield
        finally:
            self.visits.discard(visit)
            self._by_address[visit.address] -= 1
            self._by_address += Counter()  # forgets those at zero

    def example(self, name: str, kind: str) -> bytes:
        """The bytes of an example's portrait. Raises Mistake for one that is not offered."""
        if name not in EXAMPLES:
            raise Mistake("unknown_example", f"There is no example of that name; there are {', '.join(EXAMPLES)}.", 404)
        return Path(asset(f"{name}.jpg")).read_bytes()

    def example_voice(self, name: str) -> np.ndarray:
        """The voice of an example, mono at 16 kHz. Raises Mistake for one that is not offered."""
        if name not in EXAMPLES:
            raise Mistake("unknown_example", f"There is no example of that name; there are {', '.join(EXAMPLES)}.", 404)
        return _example_voice(name)

    def _recordings(self, form: str) -> dict[str, Sink]:
        if self.settings.record is None or form != "mp4":
            return {}
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}.mp4"
        return {"recording": Recording(Path(self.settings.record).expanduser() / name)}

    def told(self) -> dict[str, Any]:
        """What a visitor is told at the door."""
        settings = self.settings
        limits = {
            "upload_bytes": settings.upload_bytes, "pixels": settings.pixels, "voice_s": settings.voice_s,
            "characters": settings.characters, "stream_minutes": settings.stream_minutes,
        }  # fmt: skip
        return {"version": __version__, "limits": limits}

    def state(self) -> dict[str, Any]:
        """What the page shows before anybody speaks."""
        engine, loaded = self.engine, self.engine.loaded
        told = {"state": engine.state, "reason": engine.reason, **self.told(), "busy": self.busy()}
        told["examples"] = [
            {"name": name, "title": title, "prompt": words} for name, (title, words) in EXAMPLES.items()
        ]
        told["voices"] = VOICES
        told["explained"] = EXPLAINED
        if loaded is not None:
            names = offered(loaded.about.get("processes", 1))
            told["strategies"] = [
                {"name": name, "title": STRATEGIES[name][0], "about": STRATEGIES[name][1]} for name in names
            ]
            told["choice"] = vars(loaded.choice)
            told["ranges"] = {"steps": STEPS, "shift": SHIFT}
            told["may_change"] = self.settings.may_restart and loaded.about.get("processes", 1) == 1
            told["about"] = loaded.about
        return told

    def busy(self) -> dict[str, int]:
        """Streams under way, places for them, and how many wait."""
        return {"streams": self.places.taken, "places": self.places.seats, "waiting": len(self.places.line)}

    def meters(self, player: Any) -> dict[str, Any]:
        """What the page shows beside each chunk."""
        loaded = self.engine.loaded
        stats = {name: round(value, 4) for name, value in vars(player.session.stats).items() if value is not None}
        told: dict[str, Any] = {"stats": stats, "busy": self.busy()}
        if loaded is not None:
            told["memory"] = {
                "used": own().get("resident_bytes", 0),
                "plan": self._planned(),
                "device": loaded.budget.device,
            }
        return told

    def _planned(self) -> int:
        loaded = self.engine.loaded
        return 0 if loaded is None else loaded.budget.shared + loaded.budget.stream * self.places.taken

    def health(self) -> tuple[int, dict[str, Any]]:
        """HTTP status and body of GET /health: 200 while visitors can be served."""
        told = {
            "state": self.engine.state,
            "reason": self.engine.reason,
            "up_s": round(time.monotonic() - self._began, 1),
            **self.busy(),
        }
        return 200 if self.engine.state == "ready" else 503, told

    def metrics(self) -> str:
        now = own() | {
            "streams": self.places.taken, "waiting": len(self.places.line), "places": self.places.seats,
            "visitors": len(self.visits), "engine_up": float(self.engine.state == "ready"),
            "engine_starts_total": self.engine.starts, "plan_bytes": self._planned(),
        }  # fmt: skip
        return self.figures.text(now)


@functools.lru_cache(maxsize=len(EXAMPLES))
def _example_voice(name: str) -> np.ndarray:
    return load_voice(asset(f"{name}.flac")).at(SPEECH_RATE)
