"""From a configuration to a run: the only place that instantiates anything from config."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from torch import nn

from liveavatar.checkpoint.load import materialise
from liveavatar.checkpoint.read import TensorSource
from liveavatar.intake import Parts
from liveavatar.media.image import parse_area
from liveavatar.memory.profiler import PeakMemory
from liveavatar.metrics.speed import SpeedMeter
from liveavatar.session import AvatarSession, Stream
from liveavatar.sinks import Fanout, LatentSink, NullSink, ProgressSink
from liveavatar.tracking import make_run_directory, stamp, start_log, write_metrics
from liveavatar.types import AvatarRequest, Sink, VideoChunk

log = logging.getLogger(__name__)

MAX_CPU_RANKS = 16
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
    _sinks: Fanout | None = None

    def chunks(self) -> Iterator[VideoChunk]:
        """The video of the request, each piece already handed to all sinks."""
        self.speed.begin()
        stream = self.session.prepare(self.request)
        self.memory.end("encode")
        self._sinks = self._open(stream)
        blocks = stream.gathered.blocks
        try:
            for chunk in self.session.chunks(stream):
                self._sinks.write(chunk)
                yield chunk
            self.metrics["run/finished"] = True
        finally:
            self._finish(stream, blocks)

    def _open(self, stream: Stream) -> Fanout:
        """Sinks of this run; ranks that do not show anything have none."""
        if not self.session.shows:
            return Fanout({"none": NullSink()})
        sinks: dict[str, Sink] = {"video": instantiate(self.cfg.sink)}
        if self.cfg.output.latents is not None:
            config = OmegaConf.to_yaml(self.cfg, resolve=True)
            about = {"config": config, "threads": str(torch.get_num_threads())}
            sinks["latents"] = LatentSink(Path(self.cfg.output.latents), about)
        sinks |= {"speed": self.speed, "progress": ProgressSink()}
        fanout = Fanout(sinks, essential=tuple(name for name in ("video", "latents") if name in sinks))
        fanout.open(stream.info)
        return fanout

    def _finish(self, stream: Stream, blocks: int) -> None:
        """Close the sinks and write what is known of the run, however it ended."""
        if self._sinks is not None:
            self._sinks.close()
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
    request = make_request(cfg)
    strategy = instantiate(cfg.strategy)
    sampler, rollout, speech = instantiate(cfg.sampler), instantiate(cfg.rollout), instantiate(cfg.speech)
    rollout_mode = rollout.mode
    fabric = make_fabric(cfg, strategy)
    if rollout_mode == "clipwise" and fabric.world_size > 1:
        raise ValueError(
            f"rollout=clipwise runs on one device, and fabric.devices={cfg.fabric.devices}: "
            "use rollout=streaming, or fabric.devices=1"
        )
    fabric.launch()
    threads = set_threads(cfg, fabric)
    shows = strategy.is_output_rank
    directory = make_run_directory(cfg.output.dir) if shows else None
    start_log(directory)
    if directory is not None:
        cfg = OmegaConf.merge(cfg, {"output": {"dir": str(directory)}})  # type: ignore[assignment]
        OmegaConf.save(cfg, directory / "config.yaml", resolve=True)

    began = time.perf_counter()
    memory = PeakMemory(strategy.device)
    source: TensorSource = instantiate(cfg.weights)
    parts = build_parts(cfg, source, strategy)
    memory.end("load")
    log.info(strategy.summary())
    if source.origin == "random":
        log.warning(
            "weights: random. The picture will be noise: this shows that the machinery runs, not an avatar."
        )
    metrics = stamp(str(strategy.device), threads, fabric.world_size)
    metrics |= {
        "run/finished": False,
        "weights": source.origin,
        "strategy": strategy.name,
        "model": cfg.model.name,
    }
    metrics |= {"run/precision": cfg.precision.dit, "speed/load_s": time.perf_counter() - began}
    session = AvatarSession(parts, sampler, rollout, speech, strategy.device, cfg.decode.online, shows)
    return Run(cfg, request, session, strategy, directory, SpeedMeter(), memory, metrics)


def make_request(cfg: DictConfig) -> AvatarRequest:
    """The request that `cfg.request` and `cfg.seed` describe."""
    asked = cfg.request
    for key in ("image", "audio"):
        if not asked[key]:
            raise ValueError(
                f"request.{key} is empty: name a file, for example request.{key}=me.{'jpg' if key == 'image' else 'wav'}"
            )
    return AvatarRequest(
        image=Path(asked.image),
        audio=_paths(asked.audio),
        prompt=str(asked.prompt or ""),
        size=parse_area(asked.size, cfg.model.size_multiple),
        seed=int(cfg.seed),
        max_seconds=None if asked.max_seconds is None else float(asked.max_seconds),
        pose=None if asked.pose is None else Path(asked.pose),
        masks=_paths(asked.masks) if asked.masks else (),
    )


def _paths(joined: str) -> tuple[Path, ...]:
    """`a.wav+b.wav` as two paths, unless a file has a plus sign in its name."""
    whole = Path(str(joined))
    return (whole,) if whole.exists() else tuple(Path(part) for part in str(joined).split("+"))


def make_fabric(cfg: DictConfig, strategy: Any) -> Fabric:
    """Fabric for the asked devices; raises ValueError for a number that this machine or strategy has no use for."""
    devices, accelerator = cfg.fabric.devices, cfg.fabric.accelerator
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if accelerator not in ("auto", "cpu", "cuda"):
        raise ValueError(f"fabric.accelerator={accelerator!r} is unknown; write auto, cpu or cuda")
    if accelerator == "cuda" and not gpus:
        raise ValueError(
            "fabric.accelerator=cuda, but PyTorch finds no GPU here: write fabric.accelerator=cpu"
        )
    if accelerator == "auto":
        accelerator = "cuda" if gpus else "cpu"
    most = gpus if accelerator == "cuda" else MAX_CPU_RANKS
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise ValueError(f"fabric.devices={devices!r} must be a whole number from 1 to {most}")
    if devices > most:
        advice = (
            "write fabric.accelerator=cpu to run on the CPU"
            if accelerator == "cuda"
            else "more only slow it down"
        )
        raise ValueError(f"fabric.devices={devices}, but {accelerator} offers at most {most} here: {advice}")
    if devices > strategy.max_devices:
        raise ValueError(
            f"fabric.devices={devices}, but strategy {strategy.name} uses {strategy.max_devices}: "
            "add +strategy=fsdp_stream to divide the weights among them"
        )
    strategy.settle(accelerator)
    nodes = (
        max(1, int(os.environ.get("WORLD_SIZE", devices)) // devices)
        if "LOCAL_WORLD_SIZE" in os.environ
        else 1
    )
    return Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy)


def set_threads(cfg: DictConfig, fabric: Fabric) -> int:
    """Set and return the intra-op threads of this process: the last bit of a matrix product depends on them."""
    threads = cfg.fabric.threads
    if threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, cores // int(cfg.fabric.devices))
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(
            f"fabric.threads={threads!r} must be a whole number from 1, or null for cores ÷ processes"
        )
    torch.set_num_threads(threads)
    return threads


def build_parts(cfg: DictConfig, source: TensorSource, strategy: Any) -> Parts:
    """Build every model on meta and fill it: the DiT by the strategy, the others resident on its device."""
    dit_dtype, dtype = _dtype(cfg, "dit"), _dtype(cfg, "encoders")
    with torch.device("meta"):
        dit = instantiate(cfg.model.dit)
        others: dict[str, nn.Module] = {
            name: instantiate(cfg.model[name]) for name in ("text", "speech", "vae")
        }
    for name, module in others.items():
        materialise(module, _Named(source, name), strategy.device, dtype)
    strategy.place(dit.eval(), source, dit_dtype)
    tokenizer = instantiate(cfg.model.tokenizer)
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
