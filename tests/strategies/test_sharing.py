"""Ranks that share weights, each on requests of its own, give the single device's latents and end together."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tests.scene import make_dit
from tests.strategies.sharing import HANDS, SHARINGS, STEPS, Sharing, Stream

RUNS = [pytest.param(world, case, id=f"{world}_ranks-{case.name}") for world in SHARINGS for case in SHARINGS[world]]


@cache
def truth(stream: Stream) -> Tensor:
    return stream.latents(make_dit())


@pytest.mark.parametrize(("world", "case"), RUNS)
def test_each_rank_has_its_own_requests_as_a_single_device_has_them(
    worked: Callable[[int], Path], world: int, case: Sharing
) -> None:
    idle: list[int | None] = []
    for rank, hand in enumerate(HANDS[world]):
        with safe_open(worked(world) / f"{case.name}-{rank}.safetensors", "pt") as file:
            about = json.loads(file.metadata()["about"])
            whole = [stream for stream in hand if not stream.broken]
            assert sorted(file.keys()) == sorted(["present", *[f"seed_{stream.seed}" for stream in whole]])
            for stream in whole:
                assert torch.equal(file.get_tensor(f"seed_{stream.seed}"), truth(stream)), f"rank {rank}, {stream}"
        assert about["collected"] == list(range(world))
        assert "each rank computes requests of its own" in about["summary"]
        idle.append(about["idle"])
    _check_idle(case, world, idle)


def _check_idle(case: Sharing, world: int, idle: list[int | None]) -> None:
    """A rank goes along for exactly the passes that it lacks against the busiest of its shard group."""
    size = int(case.options.get("shard_size", world))
    locked = case.strategy != "replicated" and case.options.get("source") != "host" and size > 1
    if not locked:
        assert idle == [None] * world
        return
    passes = [sum(_passes(stream) for stream in hand) for hand in HANDS[world]]
    for start in range(0, world, size):
        group = slice(start, start + size)
        assert idle[group] == [max(passes[group]) - own for own in passes[group]]


def _passes(stream: Stream) -> int:
    if stream.broken:
        return 2
    return stream.blocks * STEPS if stream.in_flight == 1 else stream.blocks + STEPS - 1  # all cells of a step at once


def test_the_requests_differ() -> None:
    streams = [truth(stream) for hand in HANDS[4] for stream in hand if not stream.broken]
    assert all(stream.isfinite().all() and stream.std() > 0.1 for stream in streams)
    assert len({stream.shape for stream in streams}) == 3
