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

from liveavatar.checkpoint.load import Lent, materialise
from liveavatar.checkpoint.read import TensorSource
from liveavatar.config import conf_dir, make
from liveavatar.intake import Parts, check_request
from liveavatar.memory.attend import WatchedSource, attending, encoding
from liveavatar.memory.explain import explained, foresee
from liveavatar.memory.figure import draw_if_possible
from liveavatar.memory.given import GB, Setup
from liveavatar.memory.plan import draw_up
from liveavatar.memory.profiler import MemoryProfiler, Prediction, ProfileSettings
from liveavatar.memory.sizes import Picture
from liveavatar.metrics.speed import SpeedMeter
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.session import AvatarSession, Stream
from liveavatar.settings import hoists, in_flight, make_fabric, make_request, settled, storage_type, thread_count
from liveavatar.sinks import Fanout, LatentSink, NullSink, ProgressSink
from liveavatar.strategies.auto import ask_of, best, choose, options, setup_of
from liveavatar.strategies.rehearsal import Stage, rehearse
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
    setup: Setup | None = None
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
        with encoding(self.memory, encoders(parts)):
            stream = self.session.prepare(self.request)
        self.memory.plan = self.memory.plan or self._foreseen(stream)
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

    def _foreseen(self, stream: Stream) -> Prediction | None:
        """What the plan says of this rank and picture; None for runs that it knows nothing of (clipwise ones)."""
        if self.cfg.rollout.get("mode") == "clipwise" or self.setup is None:
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


def assemble(cfg: DictConfig) -> Run:
    """Start processes where several are asked for, build the models, bring the weights to life.

    Raises ValueError, naming the key, for anything in the configuration that cannot work; what can be checked is
    checked before a process is started.
    """
    start_log(None)
    request = make_request(cfg)
    cfg, reason = settled(cfg)
    strategy, sampler = make(cfg.strategy, "strategy"), make(cfg.sampler, "sampler")
    rollout, speech = make(cfg.rollout, "rollout"), make(cfg.speech, "speech")
    source: TensorSource = make(cfg.weights, "weights")
    profile: ProfileSettings = make(cfg.profile, "profile")
    threads = thread_count(cfg)
    dtypes = storage_type(cfg, "dit"), storage_type(cfg, "encoders")
    cells = in_flight(cfg, strategy, sampler.steps, rollout.mode)
    hoist = hoists(cfg, strategy)
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
        parts = build_parts(cfg, WatchedSource(source, memory), strategy, sampler, *dtypes, hoist)
        memory.ledger.add(strategy.holdings)
        for name, module in encoders(parts).items():
            memory.ledger.add_module(name, module, strategy.device)
        memory.end()
    if reason:
        log.info(reason)
    log.info(strategy.summary())
    if "random" in source.origin:
        log.warning(
            "weights: %s. The picture will be noise: this shows that the machinery runs, not an avatar.", source.origin
        )
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
        parts,
        sampler,
        rollout,
        speech,
        strategy.device,
        cfg.decode.online,
        shows,
        relay,
        strategy.make_caches,
        strategy.split_codec,
    )
    shared = cfg.parallel.decode, cfg.parallel.ulysses_size
    setup = None if rollout.mode == "clipwise" else setup_of(strategy, fabric.world_size, cells, *shared)
    return Run(cfg, request, session, strategy, directory, SpeedMeter(), memory, metrics, setup)


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
    strategy.arrange(dit, sampler.steps, parallel.decode, parallel.ulysses_size)  # refuses what cannot work, in time
    tokenizer = make(cfg.model.tokenizer, "model.tokenizer")
    lent = Lent(others["text"], _Named(source, "text"), strategy.device, dtype)
    for name, module in others.items():
        if name != "text" or cfg.memory.text == "resident":
            materialise(module, _Named(source, name), strategy.device, dtype)
    strategy.place(dit.eval(), source, dit_dtype)
    text = others["text"] if cfg.memory.text == "resident" else lent
    return Parts(dit, text, tokenizer, others["speech"], others["vae"], cfg.model.size_multiple)  # type: ignore[arg-type]


def encoders(parts: Parts) -> dict[str, nn.Module]:
    """The models beside the DiT by component name, a lent one as the module that it brings to life."""
    text = parts.text.module if isinstance(parts.text, Lent) else parts.text
    return {"text": text, "speech": parts.speech, "vae": parts.codec}  # type: ignore[dict-item]


def rehearsals(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """The best way of each strategy that the runtime has, played on fake tensors, beside what the plan says of it.

    Only the fullest rank is played, and of the strategies `plan.only` (null: the two that the plan prefers). Raises
    ValueError for a configuration that cannot be planned.
    """
    ask, topology = ask_of(cfg), make(cfg.topology, "topology")
    found, told = options(ask, topology), {}
    wanted = [way.label for way in choose(found)][:2] if cfg.plan.only is None else [cfg.plan.only]
    wanted = [label for label in found if label in wanted or "all" in wanted]
    if not wanted and cfg.plan.only is not None:
        raise ValueError(f"plan.only={cfg.plan.only} is none of {', '.join(found)}; all plays every one")
    for label in wanted:
        way = best([way for way in found[label] if not way.plan.setup.missing] or found[label])
        if way.plan.setup.missing:
            continue
        setup, rank = way.plan.setup, way.plan.fullest(AWAY)
        began = time.perf_counter()
        node = OmegaConf.load(Path(conf_dir()) / "strategy" / f"{setup.strategy}.yaml")
        laid = OmegaConf.from_dotlist([word for word in setup.settings if word.startswith("strategy.")])
        strategy = make(OmegaConf.merge(node, laid.get("strategy", {})), "strategy")
        with torch.device("meta"):
            dit = make(cfg.model.dit, "model.dit").eval()
        dit.hoist = int(ask.hoisted and setup.hoists)
        decode = "rank" if "parallel.decode=rank" in setup.settings else "inline"
        seen = rehearse(
            dit,
            strategy,
            make(cfg.sampler, "sampler"),
            make(cfg.rollout, "rollout"),
            Stage(*ask.picture.latent, setup.cells, None, 1, setup.cells, setup.cells + 1),
            storage_type(cfg, "dit"),
            setup.ranks,
            rank,
            decode,
        )
        planned = way.plan.ranks[rank].playing(AWAY)
        told[label] = {
            "rank": rank,
            "peak_gb": seen.peak.nbytes / GB,
            "planned_gb": planned / GB,
            "error": planned / seen.peak.nbytes - 1,
            "unit": seen.unit,
            "parts": seen.peak.parts,
            "units_gb": {name: peak.nbytes / GB for name, peak in seen.peaks.items() if name},
            "seconds": time.perf_counter() - began,
        }
        log.info("%s: %.3f GB, %.1f s", label, seen.peak.nbytes / GB, told[label]["seconds"])
    return told


AWAY = ("speech", "vae", "text", "decoder state", "second sink")
"""Parts of a plan that a rehearsal of the DiT does not play."""


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
