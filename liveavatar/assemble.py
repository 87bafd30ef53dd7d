"""From a configuration to a run: the only place that instantiates anything from config."""

from __future__ import annotations

import contextlib
import logging
import os
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
from liveavatar.checkpoint.read import TensorSource
from liveavatar.config import make
from liveavatar.intake import Parts, check_request
from liveavatar.memory.attend import WatchedSource, attending, encoding
from liveavatar.memory.explain import explained, foresee
from liveavatar.memory.figure import draw_if_possible
from liveavatar.memory.profiler import MemoryProfiler, ProfileSettings
from liveavatar.metrics.speed import SpeedMeter
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.session import AvatarSession, Stream
from liveavatar.settings import in_flight, make_fabric, make_request, storage_type, thread_count
from liveavatar.sinks import Fanout, LatentSink, NullSink, ProgressSink
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
    memory: MemoryProfiler
    metrics: dict[str, Any] = field(default_factory=dict)
    _sinks: Fanout = field(default_factory=lambda: Fanout({}))

    def chunks(self) -> Iterator[VideoChunk]:
        """The video of the request, each piece already handed to all sinks.

        Raises OutOfMemory, with the explanation as its message, where memory runs out.
        """
        with explained(self.memory, self.cfg, self.directory):
            yield from self._chunks()

    def _chunks(self) -> Iterator[VideoChunk]:
        self.speed.begin()
        parts = self.session.parts
        with encoding(self.memory, {"text": parts.text, "speech": parts.speech, "vae": parts.codec}):
            stream = self.session.prepare(self.request)
        blocks = stream.gathered.blocks
        try:
            with attending(self.memory, parts.dit, stream):
                self._sinks = self._fanout()
                self._sinks.open(stream.info)
                for chunk in self.session.chunks(stream):
                    self._sinks.write(chunk)
                    yield chunk
                self._sinks.close()
            for failure in (self._sinks.failures.get(name) for name in ESSENTIAL):
                if failure is not None:
                    raise failure
            self.metrics["run/finished"] = True
        except BaseException:
            with contextlib.suppress(OSError):  # the failure under way is the one to tell
                self._finish(stream, blocks)
            raise
        self._finish(stream, blocks)

    def _fanout(self) -> Fanout:
        """Sinks of this run; ranks that do not show anything have none."""
        if not self.session.shows:
            return Fanout({"none": NullSink()})
        sinks: dict[str, Sink] = {"video": make(self.cfg.sink, "sink")}
        if self.cfg.output.latents is not None:
            config = OmegaConf.to_yaml(self.cfg, resolve=True)
            about = {"config": config, "threads": str(torch.get_num_threads())}
            sinks["latents"] = LatentSink(Path(self.cfg.output.latents).expanduser(), about)
        sinks |= {"speed": self.speed, "progress": ProgressSink(note=self.memory.said)}
        return Fanout(sinks, essential=tuple(name for name in ESSENTIAL if name in sinks))

    def _finish(self, stream: Stream, blocks: int) -> None:
        """Close the sinks and write what is known of the run, however it ended."""
        try:
            self._sinks.close()
        finally:
            self.memory.end()
            moved = self.strategy.traffic
            self.metrics |= self.speed.values() | self.memory.values()
            self.metrics |= {
                "traffic/host_bytes_per_block": moved.host / blocks,
                "traffic/received_bytes_per_block": moved.received / blocks,
                "traffic/sent_bytes_per_block": moved.sent / blocks,
                "traffic/cache_bytes_in_per_block": moved.caches_in / blocks,
                "traffic/cache_bytes_out_per_block": moved.caches_out / blocks,
                "traffic/unit_fetches_per_block": moved.fetches / blocks,
                "memory/weights/device": moved.held,
                "memory/weights/host": moved.parked,
                "memory/caches/device": stream.rollout.caches.nbytes,
            }
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


def assemble(cfg: DictConfig) -> Run:
    """Start processes where several are asked for, build the models, bring the weights to life.

    Raises ValueError, naming the key, for anything in the configuration that cannot work; what can be checked is
    checked before a process is started.
    """
    start_log(None)
    request = make_request(cfg)
    strategy, sampler = make(cfg.strategy, "strategy"), make(cfg.sampler, "sampler")
    rollout, speech = make(cfg.rollout, "rollout"), make(cfg.speech, "speech")
    source: TensorSource = make(cfg.weights, "weights")
    profile: ProfileSettings = make(cfg.profile, "profile")
    threads = thread_count(cfg)
    dtypes = storage_type(cfg, "dit"), storage_type(cfg, "encoders")
    cells = in_flight(cfg, strategy, sampler.steps, rollout.mode)
    fabric = make_fabric(cfg, strategy)
    if rollout.mode == "clipwise" and fabric.world_size > 1:
        raise ValueError(
            f"rollout=clipwise runs on one device, and fabric.devices={cfg.fabric.devices}: "
            "use rollout=streaming, or fabric.devices=1"
        )
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0:
        check_request(request)
        if cfg.output.latents is not None:
            check_output_file(cfg.output.latents, "output.latents")
        if cfg.output.dir is not None:
            make_run_directory(cfg.output.dir)
    for library in ("lightning.fabric", "lightning.pytorch"):  # their banner says nothing that our log does not
        logging.getLogger(library).setLevel(logging.WARNING)
    fabric.launch()
    torch.set_num_threads(threads)
    shows = strategy.is_output_rank
    directory = make_run_directory(cfg.output.dir) if shows else None
    start_log(directory)
    if directory is not None:
        cfg = OmegaConf.merge(cfg, {"output": {"dir": str(directory)}})  # type: ignore[assignment]
        OmegaConf.save(cfg, directory / "config.yaml", resolve=True)

    began = time.perf_counter()
    memory = MemoryProfiler(strategy.device, profile, rank=fabric.global_rank)
    with explained(memory, cfg, directory):
        foresee(memory, cfg, fabric.world_size)
        parts = build_parts(cfg, WatchedSource(source, memory), strategy, sampler, *dtypes)
        memory.ledger.add(strategy.holdings)
        for name, module in (("text", parts.text), ("speech", parts.speech), ("vae", parts.codec)):
            memory.ledger.add_module(name, module, strategy.device)
        memory.end()
    log.info(strategy.summary())
    if source.origin == "random":
        log.warning("weights: random. The picture will be noise: this shows that the machinery runs, not an avatar.")
    metrics = stamp(str(strategy.device), threads, fabric.world_size)
    metrics |= {
        "run/finished": False,
        "weights": source.origin,
        "strategy": strategy.name,
        "model": cfg.model.name,
    }
    metrics |= {"run/precision": cfg.precision.dit, "speed/load_s": time.perf_counter() - began}
    relay = partial(strategy.relay, sampler.steps, cells)
    session = AvatarSession(
        parts, sampler, rollout, speech, strategy.device, cfg.decode.online, shows, relay, strategy.make_caches
    )
    return Run(cfg, request, session, strategy, directory, SpeedMeter(), memory, metrics)


def build_parts(
    cfg: DictConfig,
    source: TensorSource,
    strategy: Any,
    sampler: EulerSampler,
    dit_dtype: torch.dtype,
    dtype: torch.dtype,
) -> Parts:
    """Build every model on meta and fill it: the DiT by the strategy, the others resident on its device."""
    with torch.device("meta"):
        dit = make(cfg.model.dit, "model.dit")
        names = ("text", "speech", "vae")
        others: dict[str, nn.Module] = {name: make(cfg.model[name], f"model.{name}") for name in names}
    strategy.arrange(dit, sampler.steps, cfg.parallel.decode)  # refuses what cannot work before anything loads
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
