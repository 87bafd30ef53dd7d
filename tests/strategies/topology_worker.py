"""What one rank of a group does with a topology: run its stream, and note what it held, moved and allocated."""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from liveavatar.checkpoint.keymap_dit import DIT
from liveavatar.checkpoint.read import RandomWeights
from liveavatar.checkpoint.shards import Shards
from liveavatar.models.dit.model import AvatarDiT, Residency
from liveavatar.sampling.conditioning import RolloutSettings, SinkPlan
from liveavatar.sampling.noise import CounterDistance, CounterNoise, TableDistance, TableNoise
from liveavatar.sampling.rollout import Rollout
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.strategies.mail import Rooms
from tests.goldens import build
from tests.goldens.case import Case
from tests.goldens.dit import conditioning_of, run_of, settings_of
from tests.scene import conditioning, sink_of
from tests.strategies.cases import BLOCKS
from tests.strategies.topologies import KINDS, TIMEOUT_S, Topology

DATA = Path(__file__).resolve().parents[1] / "data" / "goldens"


class Late:
    """A residency that is sometimes late, differently on every rank."""

    def __init__(self, within: Residency, rank: int) -> None:
        self.within, self.chooser = within, random.Random(rank)

    def begin(self, names: Sequence[str], then: Sequence[str] | None = None) -> None:
        self.within.begin(names, then)

    def dawdle(self) -> None:
        if self.chooser.random() < 0.1:
            time.sleep(self.chooser.random() * 0.02)

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        self.dawdle()
        with self.within.hold(name):
            yield


class RoomBook:
    """Every room that a message was ever given, and when a set of rooms last grew."""

    def __init__(self) -> None:
        self.rooms: dict[int, dict[int, Tensor]] = {}
        self.kinds: dict[int, set[str]] = {}
        self.given: dict[int, int] = {}
        self._owners: list[Rooms] = []

    @contextmanager
    def open(self) -> Iterator[None]:
        real = Rooms.take

        def take(rooms: Rooms, kind: str) -> Tensor:
            room = real(rooms, kind)
            self._owners.append(rooms)  # kept, so that no number is given twice
            self.rooms.setdefault(id(rooms), {})[room.data_ptr()] = room
            self.kinds.setdefault(id(rooms), set()).add(kind)
            self.given[id(rooms)] = self.given.get(id(rooms), 0) + 1
            return room

        Rooms.take = take
        try:
            yield
        finally:
            Rooms.take = real

    def report(self) -> list[tuple[int, int, int]]:
        """Per set of rooms: kinds of messages, rooms ever made, messages."""
        return [(len(self.kinds[key]), len(self.rooms[key]), self.given[key]) for key in self.rooms]


def run(case: Topology, folder: Path) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    strategy, model = launched(case.make(), world), case.model()
    model.hoist = int(model.hoist and strategy.hoists)
    strategy.arrange(model, case.steps, case.decode)
    strategy.place(model, RandomWeights(0), case.storage)
    own = model.residency
    given = conditioning(actors=case.actors)
    rollout = Rollout(
        model,
        given,
        EulerSampler(case.steps),
        RolloutSettings(),
        CounterNoise(0),
        CounterDistance(0),
        relay=strategy.relay(case.steps, case.in_flight),
        caches=strategy.make_caches,
    )
    late = Late(model.residency, rank)
    if case.delays:
        model.residency = late
    found: dict[str, Tensor] = {}
    book = RoomBook()
    before = torch.get_rng_state()
    with book.open():
        for block in rollout.blocks(case.blocks, sink_of(rollout)):
            found[f"block_{block.index}"] = block.latents[0].clone()
            if case.delays:
                late.dawdle()
    assert torch.equal(before, torch.get_rng_state())
    model.residency = own
    about = account(model, strategy, rollout) | {"rooms": book.report()}
    strategy.release()
    save_file(found, folder / f"{case.name}-{rank}.safetensors", {"about": json.dumps(about)})


def launched(strategy: Any, world: int) -> Any:
    Fabric(accelerator="cpu", devices=world, strategy=strategy).launch()
    return strategy


def account(model: AvatarDiT, strategy: Any, rollout: Rollout) -> dict[str, Any]:
    """What a rank holds after its stream, and what it moved."""
    held: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        held[name] = 0 if own.is_meta else own.nbytes
    storages = {
        own.untyped_storage().data_ptr(): own.untyped_storage().nbytes()
        for parameter in model.parameters()
        if not (own := parameter.to_local() if isinstance(parameter, DTensor) else parameter).is_meta
    }
    ring = getattr(strategy, "ring", None)
    return {
        "parameters": held,
        "stored": sum(storages.values()),
        "sharded": all(isinstance(parameter, DTensor) for parameter in model.parameters()),
        "traffic": vars(strategy.traffic),
        "rings": [own.k.nbytes + own.v.nbytes for own in rollout.caches.rings],
        "sink": rollout.caches.sink.k.nbytes + rollout.caches.sink.v.nbytes,
        "output": strategy.is_output_rank,
        "summary": strategy.summary(),
        "occupancy": rollout.relay.occupancy(BLOCKS),
        "ring": None if ring is None else {name: layout.nbytes for name, layout in ring.layouts.items()},
        "ring_bytes": 0 if ring is None else ring.nbytes,
        "passes": getattr(model.residency, "passes", None),
    }


def golden(name: str, strategy_name: str, folder: Path) -> None:
    """All streams that a recorded case names, over the ranks of a pipeline; leaves the latents of each."""
    case, rank = Case(DATA / name), int(os.environ["RANK"])
    strategy = launched(KINDS[strategy_name](timeout_s=TIMEOUT_S), int(os.environ["WORLD_SIZE"]))
    weights, sampler = case.folder / "weights.safetensors", EulerSampler(case.info["protocol"]["steps"])
    model = build.meta_dit(case.info["config"], weights)
    strategy.arrange(model, sampler.steps, "inline")
    strategy.place(model, Shards([weights], DIT), torch.float32)
    found = {}
    for run_name in sorted({run_of(stored) for stored in case.names()}):
        blocks = [block.latents[0].clone() for block in _recorded(case, run_name, model, sampler, strategy)]
        if blocks:
            found[run_name] = torch.stack(blocks)
    strategy.release()
    save_file(found, folder / f"{name}-{strategy_name}-{rank}.safetensors")


def _recorded(case: Case, run_name: str, model: AvatarDiT, sampler: EulerSampler, strategy: Any) -> Iterator[Any]:
    settings, protocol = settings_of(case), case.info["protocol"]
    per_clip = settings.blocks_per_clip
    given = conditioning_of(case, per_clip)
    later = case.inputs.get("motion_latents_r1", given.motion) if run_name == "single_online" else given.motion
    motions = [given.motion, later]
    rollout = Rollout(
        model,
        given,
        sampler,
        settings,
        TableNoise(case.inputs["noise"]),
        TableDistance(protocol["relative_dist"]),
        relay=strategy.relay(sampler.steps, 1),
    )
    refresh = per_clip if re.search("tpp|online", run_name) else None
    sink = SinkPlan(given.reference, lambda: motions.pop(0), refresh=refresh)
    yield from rollout.blocks(per_clip * protocol["clips"], sink)
