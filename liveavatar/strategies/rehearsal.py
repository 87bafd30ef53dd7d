"""A run without memory: the real strategy, model, caches and rollout at full size, on fake tensors and a fake group.

Shapes and lifetimes are real, numbers and other ranks are not. What it counts is what tensors need on the device of one
rank, moment by moment; on a CPU host and device are one, so what a strategy rests in host memory is told apart by role.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from liveavatar.checkpoint.slab import retype
from liveavatar.memory.tracker import HOST, Peak, StorageTracker
from liveavatar.models.dit.context import MOTION_LATENTS
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.models.dit.state import CellInput, CellState
from liveavatar.sampling.conditioning import Conditioning, NoPose, RolloutSettings, SinkPlan
from liveavatar.sampling.rollout import Rollout
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.strategies.fsdp import FsdpFull
from liveavatar.strategies.kv import HostCaches
from liveavatar.strategies.ranks import RankStrategy
from liveavatar.strategies.sources import HostSlabs
from liveavatar.strategies.streaming import StreamingStrategy
from liveavatar.types import BLOCK_FRAMES, BLOCK_LATENTS

log = logging.getLogger(__name__)

WORDS = 77
"""Tokens of the prompt in a rehearsal; they are padded to the text length at once."""


@dataclass(frozen=True)
class Rehearsed:
    """What one rank needs: at rest, at the largest moment, and at the largest moment within each unit. Bytes."""

    rank: int
    weights: int
    caches: int
    host: int
    unit: str
    peak: Peak
    peaks: dict[str, Peak] = field(repr=False)


@dataclass(frozen=True)
class Stage:
    """What is rehearsed: the latent picture, and how much of a stream.

    `rounds` ends the rehearsal early (None: all of the blocks): the largest moments come in the first ones.
    """

    h: int
    w: int
    blocks: int = 1
    refresh: int | None = None
    actors: int = 1
    cells_in_flight: int = 1
    rounds: int | None = None


class _Empty:
    """Weights without numbers."""

    origin = "fake"

    def read(self, name: str, shape: torch.Size) -> Tensor:
        return torch.empty(shape, dtype=torch.float32)


@dataclass(frozen=True)
class _Voice:
    actors: int
    layers: int
    channels: int
    dtype: torch.dtype

    def block(self, index: int) -> Tensor:
        return torch.empty(self.actors, self.layers, self.channels, BLOCK_FRAMES, dtype=self.dtype)


class _Noise:
    def block(self, block: int, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape)


def rehearse(
    dit: AvatarDiT,
    strategy: Any,
    sampler: EulerSampler,
    settings: RolloutSettings,
    stage: Stage,
    dtype: torch.dtype,
    ranks: int = 1,
    rank: int = 0,
    decode: str = "inline",
    ulysses: int = 1,
) -> Rehearsed:
    """Play some blocks of a stream on one of `ranks`; `dit` is built on meta and of no use afterwards.

    Raises what the strategy raises for a division that cannot work, and RuntimeError inside a real process group.
    """
    retype(dit, dtype)
    voice = _Voice(stage.actors, *dit.audio, dtype)
    numbers = [float(level) for level in sampler.sigmas], [float(t) for t in sampler.timesteps]
    with _group(strategy, ranks, rank):
        strategy.arrange(dit, sampler.steps, decode, ulysses)
        if isinstance(strategy, FsdpFull):
            _cut_ahead(strategy, dit, dtype)
        tracker = StorageTracker()
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), tracker:
            with tracker.roles("weights"):
                strategy.place(dit, _Empty(), dtype)
            _tell_apart(strategy, dit, tracker)
            levels = _Levels(sampler, *numbers)
            with tracker.roles("caches"):
                rollout = _rollout(dit, strategy, levels, settings, stage, voice)
            if isinstance(rollout.caches, HostCaches):
                tracker.register(HOST, [tensor for ring in rollout.caches.rings for tensor in ring.tensors])
            tracker.register("caches", rollout.caches.scratch.tensors)
            weights, caches = tracker.held["weights"] + tracker.held["ring"], tracker.held["caches"]
            tracker.peaks.clear()
            tracker.watch({"root": dit, **dit.units()})
            given = rollout.conditioning
            plan = SinkPlan(given.reference, lambda: given.motion, refresh=stage.refresh)
            _play(rollout, stage, plan)
            strategy.release()
        unit, peak = tracker.peak
        return Rehearsed(rank, weights, caches, tracker.held[HOST], unit, peak, dict(tracker.peaks))


def _play(rollout: Rollout, stage: Stage, plan: SinkPlan) -> None:
    """The blocks of a stage, or its first rounds."""
    relay = rollout.relay
    rounds = relay.rounds
    relay.rounds = lambda: islice(rounds(), stage.rounds)  # type: ignore[method-assign]
    for _ in rollout.blocks(stage.blocks, plan):
        pass


def one_cell(
    dit: AvatarDiT, strategy: FsdpFull, h: int, w: int, dtype: torch.dtype, ranks: int, actors: int = 1
) -> Rehearsed:
    """The peak of one forward of one cell under FSDP2 without any cache: what published tables of weights show."""
    retype(dit, dtype)
    voice = _Voice(actors, *dit.audio, dtype)
    with _group(strategy, ranks, 0):
        _cut_ahead(strategy, dit, dtype)
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), StorageTracker() as tracker:
            with tracker.roles("weights"):
                strategy.place(dit, _Empty(), dtype)
            _tell_apart(strategy, dit, tracker)
            weights = tracker.held["weights"]
            tracker.watch({"root": dit, **dit.units()})
            latents, pose = (torch.empty(1, dit.in_dim, BLOCK_LATENTS, h, w, dtype=dtype) for _ in range(2))
            text = torch.empty(1, WORDS, dit.text_dim, dtype=dtype)
            dit([CellState(CellInput(latents, 1000.0, pose, voice.block(0), text), _Alone())])
        unit, peak = tracker.peak
        return Rehearsed(0, weights, 0, tracker.held[HOST], unit, peak, dict(tracker.peaks))


def _cut_ahead(strategy: FsdpFull, dit: AvatarDiT, dtype: torch.dtype) -> None:
    """Wrap units before there are fake tensors, of which no mesh can be made."""
    wrapped = strategy.cut(dit, dtype)
    strategy.cut = lambda *_: wrapped  # type: ignore[method-assign]


class _Alone:
    """No past: a cell that sees its own tokens."""

    def exchange(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q, k, v


def _rollout(
    dit: AvatarDiT, strategy: Any, sampler: Any, settings: RolloutSettings, stage: Stage, voice: _Voice
) -> Rollout:
    picture, dtype = (dit.in_dim, 1, stage.h, stage.w), voice.dtype
    conditioning = Conditioning(
        text=torch.empty(1, WORDS, dit.text_dim, dtype=dtype),
        reference=torch.empty(1, *picture, dtype=dtype),
        motion=torch.empty(1, dit.in_dim, MOTION_LATENTS, stage.h, stage.w, dtype=dtype),
        audio=voice,
        pose=NoPose(torch.empty(1, dit.in_dim, BLOCK_LATENTS, stage.h, stage.w, dtype=dtype)),
    )
    relay = strategy.relay(sampler.steps, stage.cells_in_flight)
    return Rollout(dit, conditioning, sampler, settings, _Noise(), _near, relay=relay, caches=strategy.make_caches)


def _near(block: int, step: int) -> int:
    return 4


class _Levels(EulerSampler):
    """A sampler whose noise levels are plain numbers: a fake tensor has none to give."""

    def __init__(self, like: EulerSampler, sigmas: list[float], timesteps: list[float]) -> None:
        self.steps = like.steps
        self.sigmas, self.timesteps = sigmas, timesteps  # type: ignore[assignment]


def _tell_apart(strategy: Any, dit: nn.Module, tracker: StorageTracker) -> None:
    """Name the ring, and what rests in host memory."""
    if isinstance(strategy, StreamingStrategy) and strategy.ring is not None:
        tracker.register("ring", [slot.room for slot in strategy.ring.slots])
        if isinstance(strategy._bytes, HostSlabs):
            tracker.register(HOST, [strategy._bytes.room])
    if isinstance(strategy, FsdpFull) and strategy.offloads:
        shards = [getattr(parameter, "_local_tensor", parameter) for parameter in dit.parameters()]
        tracker.register(HOST, shards)


@contextlib.contextmanager
def _group(strategy: Any, ranks: int, rank: int) -> Iterator[None]:
    """A process group of which only this rank exists, and the strategy's belief in it."""
    if not isinstance(strategy, RankStrategy):
        strategy.settle("cpu")
        yield
        return
    if dist.is_initialized():
        raise RuntimeError("a rehearsal makes a process group of its own, and one exists already: use a new process")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    alone = isinstance(strategy, StreamingStrategy)  # one rank a machine: what machines share is never made
    here = SimpleNamespace(
        global_rank=lambda: rank,
        world_size=lambda: ranks,
        local_rank=lambda: 0 if alone else rank,
        node_rank=lambda: rank if alone else 0,
    )
    strategy.cluster_environment = here  # type: ignore[assignment]
    strategy.parallel_devices = [torch.device("cpu")] * (1 if alone else ranks)
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
