"""Streams on every strategy that can be chosen: by world size, what the workers run beside the ring's own cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from liveavatar.models.dit.model import AvatarDiT
from liveavatar.strategies.fsdp import FsdpFull, HsdpOffload
from liveavatar.strategies.pipeline import DiagonalPipeline, TimestepPipeline
from liveavatar.strategies.replicated import Replicated
from liveavatar.strategies.stream import FsdpStream
from tests.scene import meta_dit
from tests.strategies.cases import BLOCKS

KINDS = {
    kind.name: kind for kind in (DiagonalPipeline, TimestepPipeline, FsdpFull, HsdpOffload, FsdpStream, Replicated)
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
    hoist: bool = True
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        words = [self.strategy, f"{self.steps}_steps", *[_option(*pair) for pair in self.options.items()]]
        words += ["decode_rank"] * (self.decode == "rank") + [f"{self.actors}_actors"] * (self.actors > 1)
        words += [f"{self.layers}_layers"] * (self.layers != 3) + [f"{self.in_flight}_in_flight"] * (self.in_flight > 1)
        words += [self.dtype] * (self.dtype != "float32") + ["delays"] * self.delays
        words += [f"{self.blocks}_blocks"] * (self.blocks != BLOCKS) + ["unhoisted"] * (not self.hoist)
        return "-".join(words)

    @property
    def storage(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def source(self) -> str:
        """Where a pipeline's weights rest."""
        return self.options.get("source", "device")

    @property
    def plainly_streamed(self) -> bool:
        return self.source != "device" and not self.hoist

    @property
    def is_pipeline(self) -> bool:
        return self.strategy in (DiagonalPipeline.name, TimestepPipeline.name)

    @property
    def sizes(self) -> dict[str, Any]:
        return WIDE if self.layers == 6 else {}

    def model(self) -> AvatarDiT:
        model = meta_dit(**self.sizes)
        model.hoist = self.hoist
        return model

    def make(self) -> Any:
        return KINDS[self.strategy](timeout_s=TIMEOUT_S, **self.options)

    def finishers(self, world: int) -> tuple[int, ...]:
        """The ranks that must come out with the whole stream."""
        if not self.is_pipeline:
            return tuple(range(world))
        return (0, 1) if self.decode == "rank" else (0,)


def _option(key: str, value: Any) -> str:
    return "table_" + "_".join(row.replace(" ", "") for row in value) if key == "table" else f"{key}_{value}"


def diagonal(options: dict[str, Any] | None = None, **more: Any) -> Topology:
    return Topology(DiagonalPipeline.name, options=options or {}, **more)


def timestep(options: dict[str, Any] | None = None, **more: Any) -> Topology:
    return Topology(TimestepPipeline.name, options=options or {}, **more)


def full(more: dict[str, Any] | None = None, **options: Any) -> Topology:
    return Topology(FsdpFull.name, options=options, **(more or {}))


def hybrid(more: dict[str, Any] | None = None, **options: Any) -> Topology:
    return Topology(HsdpOffload.name, options=options, **(more or {}))


def stream(more: dict[str, Any] | None = None, **options: Any) -> Topology:
    return Topology(FsdpStream.name, options=options, **(more or {}))


THREE, TWO_VOICES, LATE = {"steps": 3}, {"steps": 3, "actors": 2}, {"delays": True}
RANK, SIX = {"decode": "rank"}, {"layers": 6}

PEERS, HOST, DISK = {"source": "peers"}, {"source": "host"}, {"source": "disk"}
KV = {"source": "host", "caches": "host"}
GRID = {"step_groups": 2}
MIXED = {"table": ("steps 2-3 layers 1-2", "steps 0-3 layer 0", "steps 0-1 layers 1-2")}
BRICKS = {"table": ("decode", "steps 1-3 layers 2-5", "step 0 layers 4-5", "steps 1-3 layers 0-1", "step 0 layers 0-3")}
"""Cut in other places at other steps: a sink prefill has several ways to go."""

TOPOLOGIES: dict[int, tuple[Topology, ...]] = {
    1: (
        timestep(),
        timestep(steps=1),
        timestep(PEERS),
        diagonal(**TWO_VOICES),
        diagonal(KV | {"debug": True}, in_flight=4, hoist=False),
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
        diagonal(KV | {"resident": 1}, hoist=False, **THREE),
        diagonal(DISK | {"debug": True}, in_flight=4, hoist=False, **LATE),
        diagonal({"decode_cost": 3.0}),
        timestep(HOST | {"slots": 3}, **RANK),
        timestep(PEERS, actors=2, **LATE),
        timestep(PEERS | {"caches": "host"}, in_flight=2),
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
        stream(source="host", caches="host"),
        stream({"hoist": False, "in_flight": 2}, source="peers"),
        diagonal(actors=2, hoist=False),
    ),
    3: (
        timestep(**TWO_VOICES),
        timestep(**LATE),
        timestep(**RANK),
        diagonal(),
        diagonal(**TWO_VOICES, **LATE),
        diagonal(**SIX, **RANK),
        diagonal(MIXED, **LATE),
        diagonal(HOST | GRID, hoist=False, **RANK),
        timestep(PEERS, **LATE),
        timestep(PEERS | {"resident": 1, "debug": True}, **THREE, **RANK, **LATE),
        timestep(HOST | MIXED, in_flight=2),
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
        diagonal(GRID, **LATE),
        diagonal(GRID | PEERS, actors=2, **LATE),
        timestep(PEERS, **LATE),
        timestep(PEERS | {"slots": 3}, dtype="bfloat16", **RANK),
        timestep(KV, hoist=False, **THREE),
        full(THREE, wrap="reference"),
        full(prefetch=2),
        hybrid(THREE, shard_size=2),
    ),
    5: (
        timestep(**RANK),
        timestep(),
        timestep(**THREE, **LATE),
        timestep(PEERS, **LATE),
        diagonal(**SIX),
        diagonal(BRICKS, **SIX, **RANK, **LATE),
        diagonal(HOST | GRID, in_flight=2, **SIX),
        diagonal(actors=2, **SIX, **RANK, **LATE),
        full(THREE),
        hybrid(THREE, shard_size=5),
        stream(THREE, source="peers", slots=3),
    ),
}
"""By world size."""

GOLDENS = ("dit_stream", "dit_multi_actor", "dit_local_attn")
"""Recorded streams that two ranks of a pipeline reproduce."""
