"""Caches in one byte a number: how far a stream moves, what is held, and that where they rest changes no bit."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from liveavatar.models.dit.cache import CacheShape, StreamCaches, StreamView
from liveavatar.ops.quantise import KINDS, give_back, keep_small
from liveavatar.ops.rope import grid_rotations, rotate
from liveavatar.sampling.conditioning import RolloutSettings
from liveavatar.sampling.noise import CounterDistance, CounterNoise
from liveavatar.sampling.relay import LocalRelay
from liveavatar.sampling.rollout import Rollout
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.strategies.base import Traffic
from liveavatar.strategies.kv import HostCaches
from tests.scene import conditioning, draw, latents_of, make_dit

BLOCKS = 7  # the ring wraps and the sink is refreshed after 4
ERROR = {"fp8": 0.03, "int8": 0.01}
"""Of normal numbers, relative, in the mean of squares: e4m3 keeps three bits, int8 127 steps to the largest."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_of_a_token_comes_back_within_the_error_of_its_kind(kind: str, dtype: torch.dtype) -> None:
    x = (draw(0, 1, 50, 3, 64) * draw(1, 1, 50, 3, 1).exp()).to(dtype)
    x[0, 7] = 0
    payload, scale = torch.zeros(x.shape, dtype=KINDS[kind]), torch.zeros(1, 50, 3, 1)
    keep_small(x, payload, scale)
    room = torch.empty_like(x)
    give_back(room, payload, scale)
    assert room[0, 7].eq(0).all()
    error = (room.float() - x.float()).norm(dim=-1) / x.float().norm(dim=-1).clamp_min(1e-9)
    assert 0 < error.max() < 1.5 * ERROR[kind]
    assert error.square().mean().sqrt() < ERROR[kind]


def stream(kind: str | None, host: bool = False, cells: int = 1, steps: int = 2) -> tuple[Tensor, Rollout, Traffic]:
    traffic, dit = Traffic(), make_dit()
    dit.cache_kind = kind
    rollout = Rollout(
        dit, conditioning(), EulerSampler(steps), RolloutSettings(), CounterNoise(0), CounterDistance(0),
        relay=LocalRelay(steps, cells), caches=partial(HostCaches, traffic=traffic) if host else None,
    )  # fmt: skip
    return latents_of(rollout, BLOCKS), rollout, traffic


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_moves_a_little_and_where_its_caches_rest_changes_no_bit(kind: str) -> None:
    exact = stream(None)[0]
    small, rollout, _ = stream(kind)
    moved = float((small - exact).norm() / exact.norm())
    assert 0 < moved < ERROR[kind]
    for cells in (1, 2):
        assert torch.equal(stream(kind, host=True, cells=cells)[0], small)
    heads = rollout.caches.shape.heads * (rollout.caches.shape.channels + 4)
    for held, tokens in ((rollout.caches.rings[0], "ring_tokens"), (rollout.caches.sink, "sink_tokens")):
        assert held.k.dtype == KINDS[kind]
        assert held.nbytes == 2 * 3 * getattr(rollout.caches.shape, tokens) * heads


def test_a_cell_sees_its_own_tokens_as_they_are() -> None:
    """Only the past is lossy: what a cell brings along it attends to before it is made small."""
    shape = CacheShape(layers=1, heads=2, channels=16, frame_tokens=8, sink_tokens=5, kind="fp8")
    caches = StreamCaches(shape, 1, torch.empty(0))
    kept, values = [], torch.empty(0)
    for frame in (0, 3):
        turns = grid_rotations(range(frame, frame + 3), range(8), [0], 16)
        view = StreamView(
            caches.rings[0], caches.sink, caches.scratch, frame, 3, turns, grid_rotations([9], range(5), [0], 16)
        )
        q, k, v = (draw(frame + i, 1, 24, 2, 16) for i in range(3))
        _, keys, values = view.exchange(0, q, k, v)
        assert keys.shape[1] == 5 + 8 * (frame + 3)
        assert torch.equal(keys[:, -24:], rotate(k, turns))
        assert torch.equal(values[:, -24:], v)
        kept.append(v)
    before, past = kept[0], values[:, 5:29]
    assert not torch.equal(past, before)
    torch.testing.assert_close(past, before, rtol=0.07, atol=0.01)


def test_only_small_bytes_move_between_host_and_device() -> None:
    _, whole, plain = stream(None, host=True)
    _, rollout, moved = stream("fp8", host=True)
    shape = rollout.caches.shape
    share = (shape.channels + 4) / (4 * shape.channels)
    assert moved.caches_in == plain.caches_in * share
    assert moved.caches_out == plain.caches_out * share
    assert moved.parked == plain.parked * share
    arrivals = 2 * 2 * shape.ring_tokens * shape.heads * (shape.channels + 4)  # two rooms, keys and values
    sink = rollout.caches.sink.nbytes - whole.caches.sink.nbytes
    assert rollout.caches.nbytes == whole.caches.nbytes + sink + arrivals
    assert sum(device for device, _ in rollout.caches.held().values()) == rollout.caches.nbytes
