"""One request on its way: from models that are in place to files, with an account of what it held and moved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from liveavatar.checkpoint.load import Lent
from liveavatar.config import kept, make
from liveavatar.intake import Parts
from liveavatar.memory.attend import attending, encoding
from liveavatar.memory.explain import explained
from liveavatar.memory.figure import draw_if_possible
from liveavatar.memory.given import Setup
from liveavatar.memory.plan import draw_up
from liveavatar.memory.profiler import MemoryProfiler, Prediction
from liveavatar.memory.sizes import Picture
from liveavatar.metrics.speed import SpeedMeter
from liveavatar.session import AvatarSession, Stream
from liveavatar.sinks import Fanout, LatentSink, NullSink, ProgressSink
from liveavatar.strategies.auto import ask_of
from liveavatar.strategies.base import Traffic
from liveavatar.tracking import write_metrics
from liveavatar.types import AvatarRequest, Sink, VideoChunk

ESSENTIAL = ("video", "latents")
"""Sinks that a user asked for: a run in which one of them failed has failed, whatever the others kept."""


@dataclass
class Run:
    """Everything that one configuration asked for, ready to go. Use as a context: `close` releases what it holds."""

    cfg: DictConfig
    request: AvatarRequest
    session: AvatarSession
    strategy: Any
    directory: Path | None
    speed: SpeedMeter
    memory: MemoryProfiler
    metrics: dict[str, Any] = field(default_factory=dict)
    setup: Setup | None = None
    _sinks: Fanout = field(default_factory=lambda: Fanout({}))
    _stream: Stream | None = None
    _made: Iterator[VideoChunk] = field(default_factory=lambda: iter(()))
    _moved: dict[str, int] = field(default_factory=dict)

    def open(self) -> None:
        """Read and encode the request and open the sinks: all that comes before the first cell.

        Raises OutOfMemory, with the explanation as its message, where memory runs out.
        """
        with explained(self.memory, self.cfg, self.directory):
            self._open()

    def _open(self) -> None:
        self.speed.begin()
        self._moved = dict(vars(self.strategy.traffic))
        with encoding(self.memory, encoders(self.session.parts)):
            stream = self.session.prepare(self.request)
        self.memory.plan = self.memory.plan or self._foreseen(stream)
        self._sinks = self._fanout()
        self._stream, self._made = stream, self.session.chunks(stream)
        try:
            self._sinks.open(stream.info)
        except BaseException:
            with contextlib.suppress(OSError):
                self._finish(stream)
            raise

    def chunks(self) -> Iterator[VideoChunk]:
        """The video of the request, each piece already handed to all sinks. Raises OutOfMemory as `open` does."""
        if self._stream is None:
            self.open()
        assert self._stream is not None
        with explained(self.memory, self.cfg, self.directory):
            yield from self._chunks(self._stream)

    def _chunks(self, stream: Stream) -> Iterator[VideoChunk]:
        try:
            with self.strategy.watched(), attending(self.memory, self.session.parts.dit, stream):
                for chunk in self._made:
                    self._sinks.write(chunk)
                    yield chunk
                self._sinks.close()
            for failure in (self._sinks.failures.get(name) for name in ESSENTIAL):
                if failure is not None:
                    raise failure
            self.metrics["run/finished"] = True
        except BaseException:
            with contextlib.suppress(OSError):  # the failure under way is the one to tell
                self._finish(stream)
            raise
        self._finish(stream)

    def compute_rest(self) -> None:
        """Go through what is left without showing it: ranks that compute one request need each other to its end."""
        with self.strategy.watched():
            for _ in self._made:
                pass

    def abandon(self) -> None:
        """Close what `open` has opened; nothing will be shown."""
        assert self._stream is not None
        self._made = iter(())
        self._finish(self._stream)

    def _foreseen(self, stream: Stream) -> Prediction | None:
        """What the plan says of this rank and picture; None for runs that it knows nothing of."""
        if self.setup is None:
            return None
        seen = Picture(stream.info.height, stream.info.width, self.cfg.rollout.cache_frames)
        try:
            ask = ask_of(self.cfg, seen)
        except (ValueError, KeyError, TypeError):  # a model of other parts: nothing is foreseen
            return None
        plan = draw_up(ask, self.setup).ranks[self.memory.rank]
        return Prediction({phase: plan.total(phase) for phase in plan.phases})

    def _fanout(self) -> Fanout:
        """Sinks of this run; ranks that do not show anything have none."""
        if not self.session.shows:
            return Fanout({"none": NullSink()})
        sinks: dict[str, Sink] = {"video": make(self.cfg.sink, "sink")}
        if self.cfg.output.latents is not None:
            about = {"config": kept(self.cfg), "threads": str(torch.get_num_threads())}
            sinks["latents"] = LatentSink(Path(self.cfg.output.latents).expanduser(), about)
        sinks["speed"] = self.speed
        if self.strategy.is_output_rank:
            sinks["progress"] = ProgressSink(note=self.memory.said)
        return Fanout(sinks, essential=tuple(name for name in ESSENTIAL if name in sinks))

    def _finish(self, stream: Stream) -> None:
        """Close the sinks and write what is known of the run, however it ended."""
        try:
            self._sinks.close()
        finally:
            self.memory.end()
            blocks, now = stream.gathered.blocks, self.strategy.traffic
            moved = Traffic(**{name: value - self._moved[name] for name, value in vars(now).items()})
            self.metrics |= self.speed.values() | self.memory.values()
            self.metrics |= {
                "traffic/host_bytes_per_block": moved.host / blocks,
                "traffic/received_bytes_per_block": moved.received / blocks,
                "traffic/sent_bytes_per_block": moved.sent / blocks,
                "traffic/cache_bytes_in_per_block": moved.caches_in / blocks,
                "traffic/cache_bytes_out_per_block": moved.caches_out / blocks,
                "traffic/unit_fetches_per_block": moved.fetches / blocks,
                "memory/weights/device": now.held,
                "memory/weights/host": now.parked,
                "memory/caches/device": stream.rollout.caches.nbytes,
                "memory/hoisted/device": stream.rollout.hoisted_bytes,
            }
            tick_count, utilisation = stream.rollout.relay.occupancy(blocks)
            self.metrics |= {"schedule/ticks": tick_count, "schedule/utilisation": utilisation}
            if self.directory is not None:
                write_metrics(self.directory, self.metrics)
                draw_if_possible(self.memory.write(self.directory), self.memory.settings.figure)

    def close(self) -> None:
        self.strategy.release()
        self.memory.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *ended: object) -> None:
        self.close()


def encoders(parts: Parts) -> dict[str, nn.Module]:
    """The models beside the DiT by component name, a lent one as the module that it brings to life."""
    text = parts.text.module if isinstance(parts.text, Lent) else parts.text
    return {"text": text, "speech": parts.speech, "vae": parts.codec}  # type: ignore[dict-item]
