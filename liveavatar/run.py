"""One request on its way: from models that are in place to files, with an account of what it held and moved."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from liveavatar.board import Board, NoBoard
from liveavatar.checkpoint.adapters import Adapters
from liveavatar.checkpoint.load import Lent
from liveavatar.config import kept, make
from liveavatar.intake import Parts
from liveavatar.journal import Journal
from liveavatar.memory.attend import attending, encoding
from liveavatar.memory.explain import explained
from liveavatar.memory.figure import draw_if_possible
from liveavatar.memory.given import Setup
from liveavatar.memory.plan import draw_up
from liveavatar.memory.profiler import MemoryProfiler, Prediction
from liveavatar.memory.sizes import Picture
from liveavatar.metrics.speed import SpeedMeter
from liveavatar.metrics.suite import Suite
from liveavatar.session import AvatarSession, Stream
from liveavatar.sinks import Fanout, LatentSink, NullSink, ProgressSink
from liveavatar.strategies.auto import ask_of
from liveavatar.strategies.base import Traffic
from liveavatar.tracking import write_about, write_metrics
from liveavatar.types import AvatarRequest, Sink, StreamInfo, VideoChunk

log = logging.getLogger(__name__)

ESSENTIAL = ("video", "latents")
"""Sinks that a user asked for: a run in which one of them failed has failed, whatever the others kept."""


@dataclass
class Run:
    """Everything that one configuration asked for, ready to go. Use as a context: `close` releases what it holds.

    `adapters` are the LoRA files beside the weights: they may be attached, weighed and removed between two chunks.
    """

    cfg: DictConfig
    request: AvatarRequest
    session: AvatarSession
    strategy: Any
    directory: Path | None
    speed: SpeedMeter
    memory: MemoryProfiler
    metrics: dict[str, Any] = field(default_factory=dict)
    setup: Setup | None = None
    adapters: Adapters | None = None
    board: Board = field(default_factory=NoBoard)
    group: str | None = None
    meters: Suite = field(default_factory=lambda: Suite({}))
    _sinks: Fanout = field(default_factory=lambda: Fanout({}))
    _stream: Stream | None = None
    _made: Iterator[VideoChunk] = field(default_factory=lambda: iter(()))
    _moved: dict[str, int] = field(default_factory=dict)

    def open(self) -> None:
        """Read and encode the request and open the sinks: all that comes before the first cell.

        Raises OutOfMemory, with the explanation as its message, where memory runs out.
        """
        self._begin_board()  # a slow server is no part of the time to the first frame
        try:
            with explained(self.memory, self.cfg, self.directory):
                self._open()
        except BaseException:
            self._end_board()
            raise

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
        self.meters = make(self.cfg.metrics, "metrics") if "metrics" in self.cfg else Suite({})
        sinks = sinks_of(self.cfg, self.speed) | {"meters": self.meters}
        if self.directory is not None:
            journal = Journal(self.directory / "metrics.jsonl", self._said)
            sinks |= {"journal": journal, "board": _OnBoard(self, journal)}
        return fanout(sinks, self.memory.said if self.strategy.is_output_rank else None)

    def _said(self) -> dict[str, Any]:
        """What a line of metrics.jsonl says of memory and traffic: bytes held now, and moved since the request came."""
        now, moved = self.memory.gauge.glance(), self._since()
        found = {"memory/host": now.host, "memory/allocated": now.allocated, "memory/reserved": now.reserved}
        found |= {
            "traffic/host_bytes": moved.host,
            "traffic/received_bytes": moved.received,
            "traffic/sent_bytes": moved.sent,
            "traffic/unit_fetches": moved.fetches,
        }
        return {key: value for key, value in found.items() if value is not None}

    def _since(self) -> Traffic:
        """What has moved since the request came."""
        return Traffic(**{name: value - self._moved[name] for name, value in vars(self.strategy.traffic).items()})

    def _finish(self, stream: Stream) -> None:
        """Close the sinks and write what is known of the run, however it ended."""
        try:
            self._sinks.close()
        finally:
            self.memory.end()
            blocks, now = stream.gathered.blocks, self.strategy.traffic
            moved = self._since()
            self.metrics |= self.speed.values() | self.memory.values() | self.meters.values()
            self.metrics["speed/meters_s"] = self.meters.seconds
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
                write_about(self.directory, self.meters.abouts)
                draw_if_possible(self.memory.write(self.directory), self.memory.settings.figure)
                self._end_board()

    def _begin_board(self) -> None:
        if self.directory is None:
            return
        plain: Any = OmegaConf.to_container(self.cfg, resolve=True)
        try:
            self.board.start(self.directory, plain, self.metrics, self.group)
        except Exception as error:  # noqa: BLE001  a logger is never worth a run
            log.warning("logger: %s; nothing is logged there", error)
            self.board = NoBoard()

    def _end_board(self) -> None:
        try:
            self.board.finish(self.metrics)
        except Exception as error:  # noqa: BLE001  a logger is never worth a run
            log.warning("logger: %s; what it was told last may be missing there", error)

    def close(self) -> None:
        self.strategy.release()
        self.memory.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *ended: object) -> None:
        self.close()


@dataclass
class _OnBoard:
    """Hands the board what the journal has just written."""

    run: Run
    journal: Journal

    def open(self, info: StreamInfo) -> None:
        """The board was told by the run, ahead of its request."""

    def write(self, chunk: VideoChunk) -> None:
        self.run.board.step(chunk.index, self.journal.last)

    def close(self) -> None:
        """The board is told the end by the run, whose files it shows."""


def sinks_of(cfg: DictConfig, speed: SpeedMeter) -> dict[str, Sink]:
    """The sinks of a configuration by name."""
    sinks: dict[str, Sink] = {"video": make(cfg.sink, "sink")}
    if cfg.output.latents is not None:
        about = {"config": kept(cfg), "threads": str(torch.get_num_threads())}
        sinks["latents"] = LatentSink(Path(cfg.output.latents).expanduser(), about)
    return sinks | {"speed": speed}


def fanout(sinks: dict[str, Sink], said: Callable[[], str] | None) -> Fanout:
    """Sinks as one; a progress bar shows what `said` gives, and is left out without it."""
    if said is not None:
        sinks = sinks | {"progress": ProgressSink(note=said)}
    return Fanout(sinks, essential=tuple(name for name in ESSENTIAL if name in sinks))


def encoders(parts: Parts) -> dict[str, nn.Module]:
    """The models beside the DiT by component name, a lent one as the module that it brings to life."""
    text = parts.text.module if isinstance(parts.text, Lent) else parts.text
    return {"text": text, "speech": parts.speech, "vae": parts.codec}  # type: ignore[dict-item]
