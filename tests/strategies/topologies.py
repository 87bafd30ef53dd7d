"""Streams on every strategy that can be chosen: by world size, what the workers run beside the ring's own cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from liveavatar.models.dit.model import AvatarDiT
from liveavatar.strategies.fsdp import FsdpFull, HsdpOffload
from liveavatar.strategies.pipeline import DiagonalPipeline, TimestepPipeline
from liveavatar.strategies.replica import DataParallel
from liveavatar.strategies.stream import FsdpStream
from tests.scene import meta_dit
from tests.strategies.cases import BLOCKS

KINDS = {
    kind.name: kind for kind in (DiagonalPipeline, TimestepPipeline, FsdpFull, HsdpOffload, FsdpStream, DataParallel)
}
TIMEOUT_S = 60.0
WIDE = {"num_layers": 6, "audio_inject_layers": (0, 2, 5)}
"""Twice the layers of micro: for more ranks than it has layers."""


@dataclass(frozen=True)
class Topology:
    """One stream on one strategy of a group. `delays` makes ranks late at random."""

    strategy: str
    steps: int = 4
    decode: str = "inline"
    actors: int = 1
    layers: int = 3
    dtype: str = "float32"
    delays: bool = False
    in_flight: int = 1
    blocks: int = BLOCKS
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        words = [self.strategy, f"{self.steps}_steps", *[f"{key}_{value}" for key, value in self.options.items()]]
        words += ["decode_rank"] * (self.decode == "rank") + [f"{self.actors}_actors"] * (self.actors > 1)
        words += [f"{self.layers}_layers"] * (self.layers != 3) + [f"{self.in_flight}_in_flight"] * (self.in_flight > 1)
        words += [self.dtype] * (self.dtype != "float32") + ["delays"] * self.delays
        words += [f"{self.blocks}_blocks"] * (self.blocks != BLOCKS)
        return "-".join(words)

    @property
    def storage(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def is_pipeline(self) -> bool:
        return self.strategy in (DiagonalPipeline.name, TimestepPipeline.name)

    @property
    def sizes(self) -> dict[str, Any]:
        return WIDE if self.layers == 6 else {}

    def model(self) -> AvatarDiT:
        return meta_dit(**self.sizes)

    def make(self) -> Any:
        return KINDS[self.strategy](timeout_s=TIMEOUT_S, **self.options)

    def finishers(self, world: int) -> tuple[int, ...]:
        """The ranks that must come out with the whole stream."""
        if not self.is_pipeline:
            return tuple(range(world))
        return (0, 1) if self.decode == "rank" else (0,)


def diagonal(**more: Any) -> Topology:
    return Topology(DiagonalPipeline.name, **more)


def timestep(**more: Any) -> Topology:
    return Topology(TimestepPipeline.name, **more)


def full(more: dict[str, Any] | None = None, **options: Any) -> Topology:
    return Topology(FsdpFull.name, options=options, **(more or {}))


def hybrid(more: dict[str, Any] | None = None, **options: Any) -> Topology:
    return Topology(HsdpOffload.name, options=options, **(more or {}))


def stream(more: dict[str, Any] | None = None, **options: Any) -> Topology:
    return Topology(FsdpStream.name, options=options, **(more or {}))


THREE, TWO_VOICES, LATE = {"steps": 3}, {"steps": 3, "actors": 2}, {"delays": True}
RANK, SIX = {"decode": "rank"}, {"layers": 6}

TOPOLOGIES: dict[int, tuple[Topology, ...]] = {
    1: (
        timestep(),
        timestep(steps=1),
        diagonal(**TWO_VOICES),
        full(),
        full(wrap="reference"),
        hybrid(),
        stream(source="disk"),
        stream({"in_flight": 2}, resident=2, debug=True),
        stream(resident=3),
    ),
    2: (
        timestep(),
        timestep(**TWO_VOICES),
        timestep(**RANK),
        timestep(steps=1),
        timestep(dtype="bfloat16", **LATE),
        diagonal(),
        diagonal(**THREE, **RANK),
        diagonal(actors=2, **LATE),
        diagonal(dtype="bfloat16"),
        diagonal(blocks=1),
        diagonal(blocks=3),
        full(),
        full(wrap="reference", prefetch=0),
        full(unshard="whole"),
        full(THREE, reshard_after_forward=False, prefetch=0),
        full({"in_flight": 4}, prefetch=2),
        full({"dtype": "bfloat16", **LATE}),
        hybrid(shard_size=1),
        hybrid({"actors": 2}, shard_size=2),
        stream(source="disk", slots=3),
        stream({"in_flight": 2}, source="peers", resident=1, debug=True),
        stream({"in_flight": 3, **LATE}, source="host", resident=2, debug=True),
        stream(source="peers", resident=3),
    ),
    3: (
        timestep(**TWO_VOICES),
        timestep(**LATE),
        timestep(**RANK),
        diagonal(),
        diagonal(**TWO_VOICES, **LATE),
        diagonal(**SIX, **RANK),
        full(),
        hybrid(THREE),
        stream({"in_flight": 4}, source="peers"),
    ),
    4: (
        timestep(),
        timestep(**THREE),
        timestep(**THREE, **RANK, **LATE),
        diagonal(**SIX, **LATE),
        diagonal(**RANK),
        diagonal(**TWO_VOICES, **SIX),
        full(THREE, wrap="reference"),
        full(prefetch=2),
        hybrid(THREE, shard_size=2),
    ),
    5: (
        timestep(**RANK),
        timestep(),
        timestep(**THREE, **LATE),
        diagonal(**SIX),
        diagonal(actors=2, **SIX, **RANK, **LATE),
        full(THREE),
        hybrid(THREE, shard_size=5),
        stream(THREE, source="peers", slots=3),
    ),
}
"""By world size."""

GOLDENS = ("dit_stream", "dit_multi_actor", "dit_local_attn")
"""Recorded streams that two ranks of a pipeline reproduce."""
