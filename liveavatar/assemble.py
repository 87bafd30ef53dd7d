"""From a configuration to a run: the only place that instantiates anything from config."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from torch import nn

from liveavatar.checkpoint.load import materialise
from liveavatar.checkpoint.read import TensorSource
from liveavatar.config import make
from liveavatar.intake import Parts, check_request
from liveavatar.media.image import parse_area
from liveavatar.memory.profiler import PeakMemory
from liveavatar.metrics.speed import SpeedMeter
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.session import AvatarSession, Stream
from liveavatar.sinks import Fanout, LatentSink, NullSink, ProgressSink
from liveavatar.tracking import check_output_file, make_run_directory, stamp, start_log, write_metrics
from liveavatar.types import AvatarRequest, Sink, VideoChunk

log = logging.getLogger(__name__)

MAX_CPU_RANKS = 16
ESSENTIAL = ("video", "latents")
"""Sinks that a user asked for: a run in which one of them failed has failed, whatever the others kept."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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

    def chunks(self) -> Iterator[VideoChunk]:
        """The video of the request, each piece already handed to all sinks."""
        self.speed.begin()
        stream = self.session.prepare(self.request)
        self.memory.end("encode")
        blocks = stream.gathered.blocks
        try:
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
        sinks |= {"speed": self.speed, "progress": ProgressSink()}
        return Fanout(sinks, essential=tuple(name for name in ESSENTIAL if name in sinks))

    def _finish(self, stream: Stream, blocks: int) -> None:
        """Close the sinks and write what is known of the run, however it ended."""
        try:
            self._sinks.close()
        finally:
            self.memory.end("run")
            moved = self.strategy.traffic
            self.metrics |= self.speed.values() | self.memory.values
            self.metrics |= {
                "traffic/host_bytes_per_block": moved.host / blocks,
                "traffic/received_bytes_per_block": moved.received / blocks,
                "traffic/unit_fetches_per_block": moved.fetches / blocks,
                "memory/weights/device": moved.held,
                "memory/weights/host": moved.parked,
                "memory/caches/device": stream.rollout.caches.nbytes,
            }
            if self.directory is not None:
                write_metrics(self.directory, self.metrics)

    def close(self) -> None:
        self.strategy.release()

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
    threads = thread_count(cfg)
    dtypes = _dtype(cfg, "dit"), _dtype(cfg, "encoders")
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
    memory = PeakMemory(strategy.device)
    parts = build_parts(cfg, source, strategy, sampler, *dtypes)
    memory.end("load")
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
    session = AvatarSession(parts, sampler, rollout, speech, strategy.device, cfg.decode.online, shows, relay)
    return Run(cfg, request, session, strategy, directory, SpeedMeter(), memory, metrics)


def in_flight(cfg: DictConfig, strategy: Any, steps: int, mode: str) -> int:
    """Cells that share a pass: the strategy's own word, else what the schedule allows."""
    schedule = cfg.parallel.schedule
    if schedule not in ("sequential", "wavefront"):
        raise ValueError(f"parallel.schedule={schedule!r} is unknown; write sequential or wavefront")
    cells = strategy.cells_in_flight
    if cells is not None and not 1 <= cells <= steps:
        raise ValueError(
            f"strategy.cells_in_flight={cells}: with sampler.steps={steps} at most {steps} cells are independent of one "
            f"another; choose 1 to {steps}"
        )
    if cells is None:
        cells = steps if schedule == "wavefront" else 1
    if mode == "clipwise" and cells > 1:
        raise ValueError(
            "rollout=clipwise needs each clip finished before the next begins: use rollout=streaming, or "
            "parallel.schedule=sequential and strategy.cells_in_flight=1"
        )
    return cells


def make_request(cfg: DictConfig) -> AvatarRequest:
    """The request that `cfg.request` and `cfg.seed` describe."""
    asked = cfg.request
    for key, suffix in (("image", "jpg"), ("audio", "wav")):
        if not asked[key]:
            raise ValueError(f"request.{key} is empty: name a file, as in request.{key}=me.{suffix}")
    longest = asked.max_seconds
    if longest is not None and not (_is_number(longest) and longest > 0):
        raise ValueError(
            f"request.max_seconds={longest} must be a number of seconds above 0, or null for the whole voice"
        )
    if not _is_number(cfg.seed) or cfg.seed != int(cfg.seed):
        raise ValueError(f"seed={cfg.seed!r} must be a whole number, as in seed=0")
    return AvatarRequest(
        image=Path(asked.image).expanduser(),
        audio=_paths(asked.audio),
        prompt=str(asked.prompt or ""),
        size=parse_area(asked.size, cfg.model.size_multiple),
        seed=int(cfg.seed),
        max_seconds=None if longest is None else float(longest),
        pose=None if asked.pose is None else Path(asked.pose).expanduser(),
        masks=_paths(asked.masks) if asked.masks else (),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _paths(joined: str) -> tuple[Path, ...]:
    """`a.wav+b.wav` as two paths, unless a file has a plus sign in its name."""
    whole = Path(str(joined)).expanduser()
    return (whole,) if whole.exists() else tuple(Path(part).expanduser() for part in str(joined).split("+"))


def make_fabric(cfg: DictConfig, strategy: Any) -> Fabric:
    """Fabric for the asked devices; raises ValueError for a number that this machine or strategy has no use for."""
    devices, accelerator = cfg.fabric.devices, cfg.fabric.accelerator
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if accelerator not in ("auto", "cpu", "cuda"):
        raise ValueError(f"fabric.accelerator={accelerator!r} is unknown; write auto, cpu or cuda")
    if accelerator == "cuda" and not gpus:
        raise ValueError("fabric.accelerator=cuda, but PyTorch finds no GPU here: write fabric.accelerator=cpu")
    if accelerator == "auto":
        accelerator = "cuda" if gpus else "cpu"
    most = gpus if accelerator == "cuda" else MAX_CPU_RANKS
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise ValueError(f"fabric.devices={devices!r} must be a whole number from 1 to {most}")
    if devices > most:
        advice = "write fabric.accelerator=cpu to run on the CPU" if accelerator == "cuda" else "more only slow it down"
        raise ValueError(f"fabric.devices={devices}, but {accelerator} offers at most {most} here: {advice}")
    if devices > strategy.max_devices:
        raise ValueError(
            f"fabric.devices={devices}, but strategy {strategy.name} uses {strategy.max_devices}: "
            "add +strategy=fsdp_stream to divide the weights among them"
        )
    strategy.settle(accelerator)
    nodes = max(1, int(os.environ.get("WORLD_SIZE", devices)) // devices) if "LOCAL_WORLD_SIZE" in os.environ else 1
    return Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy)


def thread_count(cfg: DictConfig) -> int:
    """The intra-op threads of each process: the last bit of a matrix product depends on them."""
    threads = cfg.fabric.threads
    if threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        devices = cfg.fabric.devices
        return max(1, cores // devices) if isinstance(devices, int) and devices > 0 else 1
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"fabric.threads={threads!r} must be a whole number from 1, or null for cores ÷ processes")
    return threads


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


def _dtype(cfg: DictConfig, what: str) -> torch.dtype:
    name = cfg.precision[what]
    if name not in DTYPES:
        raise ValueError(f"precision.{what}={name!r} is unknown; choose {' or '.join(DTYPES)}")
    return DTYPES[name]


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
