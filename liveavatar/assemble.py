"""From a configuration to a run: the only place that instantiates anything from config."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from liveavatar.checkpoint.load import materialise
from liveavatar.checkpoint.read import TensorSource, expect
from liveavatar.choice import Chosen, choose
from liveavatar.config import kept, literal, make
from liveavatar.intake import Parts, check_request
from liveavatar.memory.profiler import PeakMemory
from liveavatar.metrics.speed import SpeedMeter
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.session import AvatarSession, Stream
from liveavatar.settings import first_rank, make_request
from liveavatar.sinks import Fanout, LatentSink, NullSink, ProgressSink
from liveavatar.strategies.base import Traffic
from liveavatar.tracking import check_output_file, make_run_directory, stamp, start_log, write_metrics
from liveavatar.types import AvatarRequest, Sink, VideoChunk

log = logging.getLogger(__name__)

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
    memory: PeakMemory
    metrics: dict[str, Any] = field(default_factory=dict)
    _sinks: Fanout = field(default_factory=lambda: Fanout({}))
    _stream: Stream | None = None
    _made: Iterator[VideoChunk] = field(default_factory=lambda: iter(()))
    _moved: dict[str, int] = field(default_factory=dict)

    def open(self) -> None:
        """Read and encode the request and open the sinks: all that comes before the first cell."""
        self.speed.begin()
        self._moved = dict(vars(self.strategy.traffic))
        stream = self.session.prepare(self.request)
        self.memory.end("encode")
        self._sinks = self._fanout()
        self._stream, self._made = stream, self.session.chunks(stream)
        try:
            self._sinks.open(stream.info)
        except BaseException:
            with contextlib.suppress(OSError):
                self._finish(stream)
            raise

    def chunks(self) -> Iterator[VideoChunk]:
        """The video of the request, each piece already handed to all sinks."""
        if self._stream is None:
            self.open()
        stream = self._stream
        assert stream is not None
        try:
            with self.strategy.watched():
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
            sinks["progress"] = ProgressSink()
        return Fanout(sinks, essential=tuple(name for name in ESSENTIAL if name in sinks))

    def _finish(self, stream: Stream) -> None:
        """Close the sinks and write what is known of the run, however it ended."""
        try:
            self._sinks.close()
        finally:
            self.memory.end("run")
            blocks, now = stream.gathered.blocks, self.strategy.traffic
            moved = Traffic(**{name: value - self._moved[name] for name, value in vars(now).items()})
            self.metrics |= self.speed.values() | self.memory.values
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

    def close(self) -> None:
        self.strategy.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *ended: object) -> None:
        self.close()


@dataclass
class Loaded:
    """Models with their weights in place, ready for any number of requests, one after another."""

    session: AvatarSession
    strategy: Any
    memory: dict[str, int]
    metrics: dict[str, Any]

    def run(self, cfg: DictConfig, request: AvatarRequest, directory: Path | None) -> Run:
        """One request on these models; it shares nothing with other runs but them."""
        memory = PeakMemory(self.strategy.device)
        memory.values |= self.memory
        return Run(cfg, request, self.session, self.strategy, directory, SpeedMeter(), memory, dict(self.metrics))


def load(cfg: DictConfig, chosen: Chosen) -> Loaded:
    """Build the models and bring the weights to life, on processes that are running."""
    began = time.perf_counter()
    strategy, sampler, source = chosen.strategy, chosen.sampler, chosen.source
    memory = PeakMemory(strategy.device)
    with strategy.watched():
        parts = build_parts(cfg, source, strategy, sampler, *chosen.dtypes, chosen.hoist)
        if chosen.ranks == "requests":
            strategy.take_requests(parts.dit)
    memory.end("load")
    log.info(strategy.summary())
    if "random" in source.origin:
        log.warning(
            "weights: %s. The picture will be noise: this shows that the machinery runs, not an avatar.", source.origin
        )
    metrics = stamp(str(strategy.device), chosen.threads, chosen.fabric.world_size)
    metrics |= {
        "run/finished": False,
        "weights": source.origin,
        "strategy": strategy.name,
        "model": cfg.model.name,
    }
    metrics |= {"run/precision": cfg.precision.dit, "speed/load_s": time.perf_counter() - began}
    session = AvatarSession(
        parts,
        sampler,
        chosen.rollout,
        chosen.speech,
        strategy.device,
        cfg.decode.online,
        shows=strategy.is_output_rank or chosen.ranks == "requests",
        relay=partial(strategy.relay, sampler.steps, chosen.cells),
        caches=strategy.make_caches,
        split=strategy.split_codec,
    )
    return Loaded(session, strategy, memory.values, metrics)


def assemble(cfg: DictConfig) -> Run:
    """Start processes where several are asked for, build the models, bring the weights to life.

    Raises ValueError, naming the key, for anything in the configuration that cannot work; what can be checked is
    checked before a process is started.
    """
    start_log(None)
    if cfg.requests is not None:
        raise ValueError(f"requests={cfg.requests} is a list: liveavatar.infer.infer runs it; a Run is one request")
    request = make_request(cfg)
    chosen = choose(cfg)
    if first_rank():
        check_request(request)
        if cfg.output.latents is not None:
            check_output_file(cfg.output.latents, "output.latents")
        if cfg.output.dir is not None:
            make_run_directory(cfg.output.dir)
    chosen.launch()
    directory = make_run_directory(cfg.output.dir) if chosen.strategy.is_output_rank else None
    start_log(directory)
    if directory is not None:
        cfg = OmegaConf.merge(cfg, {"output": {"dir": literal(str(directory))}})  # type: ignore[assignment]
        (directory / "config.yaml").write_text(kept(cfg), encoding="utf-8")
    return load(cfg, chosen).run(cfg, request, directory)


def build_parts(
    cfg: DictConfig,
    source: TensorSource,
    strategy: Any,
    sampler: EulerSampler,
    dit_dtype: torch.dtype,
    dtype: torch.dtype,
    hoist: int,
) -> Parts:
    """Build every model on meta and fill it: the DiT by the strategy, the others resident on its device."""
    with torch.device("meta"):
        dit = make(cfg.model.dit, "model.dit")
        names = ("text", "speech", "vae")
        others: dict[str, nn.Module] = {name: make(cfg.model[name], f"model.{name}") for name in names}
    dit.hoist, parallel = hoist, cfg.parallel
    expect(source, {name: parameter.shape for name, parameter in dit.named_parameters()})
    strategy.arrange(dit, sampler.steps, parallel.decode, parallel.ulysses_size)  # refuses what cannot work, in time
    tokenizer = make(cfg.model.tokenizer, "model.tokenizer")
    for name, module in others.items():
        materialise(module, _Named(source, name), strategy.device, dtype)
    strategy.place(dit.eval(), source, dit_dtype)
    return Parts(dit, others["text"], tokenizer, others["speech"], others["vae"], cfg.model.size_multiple)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Named:
    """A source seen from below a component's name, so that equal names in two components get different numbers."""

    source: TensorSource
    component: str

    @property
    def origin(self) -> str:
        return self.source.origin

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        return self.source.read(f"{self.component}.{name}", shape)
