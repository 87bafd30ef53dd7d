"""Caches in host memory: the same numbers, less held on the device, and only new tokens written back."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from liveavatar.models.dit.context import Grid
from liveavatar.sampling.conditioning import RolloutSettings
from liveavatar.sampling.noise import CounterDistance, CounterNoise
from liveavatar.sampling.relay import LocalRelay
from liveavatar.sampling.rollout import Rollout
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.strategies.base import Traffic
from liveavatar.strategies.kv import SLOTS, HostCaches
from liveavatar.strategies.stream import FsdpStream
from tests.scene import conditioning, latents_of, make_dit, make_rollout

BLOCKS = 7  # the ring wraps and the sink is refreshed after 4


def run(host: bool, cells: int = 1, actors: int = 1, **settings: int) -> tuple[Tensor, Rollout, Traffic]:
    traffic = Traffic()
    rollout = Rollout(
        make_dit(),
        conditioning(actors=actors),
        EulerSampler(4),
        RolloutSettings(**settings),
        CounterNoise(0),
        CounterDistance(0),
        relay=LocalRelay(4, cells),
        caches=partial(HostCaches, traffic=traffic) if host else None,
    )
    return latents_of(rollout, BLOCKS), rollout, traffic


@pytest.mark.parametrize("cells", [1, 2, 4])
@pytest.mark.parametrize("settings", [{}, {"local_frames": 6}, {"cache_frames": 6}], ids=str)
def test_streamed_caches_give_the_same_latents(cells: int, settings: dict[str, int]) -> None:
    resident, _, _ = run(host=False, cells=1, **settings)
    streamed, _, _ = run(host=True, cells=cells, **settings)
    assert torch.equal(streamed, resident)


def test_two_speakers_too() -> None:
    assert torch.equal(run(host=True, actors=2)[0], run(host=False, actors=2)[0])


def test_the_device_holds_the_sink_and_two_rooms_and_the_host_the_rings() -> None:
    _, rollout, traffic = run(host=True)
    shape = rollout.caches.shape
    token = 2 * shape.heads * shape.channels * 4  # a key and a value in float32
    rooms = SLOTS * (shape.sink_tokens + shape.ring_tokens)
    assert rollout.caches.nbytes == token * (shape.layers * shape.sink_tokens + rooms)
    assert traffic.parked == token * 4 * shape.layers * shape.ring_tokens
    assert rollout.caches.nbytes < run(host=False)[1].caches.nbytes


def test_only_new_tokens_go_back_and_only_old_ones_come() -> None:
    _, rollout, traffic = run(host=True)
    shape = rollout.caches.shape
    frame = 2 * shape.heads * shape.channels * 4 * shape.frame_tokens * shape.layers
    assert traffic.caches_out == 4 * BLOCKS * 3 * frame
    seen = [min(3 * block, 12 - 3) for block in range(BLOCKS)]  # latent frames before a block that its ring still holds
    assert traffic.caches_in == 4 * sum(seen) * frame


def test_a_layer_out_of_turn_is_an_error() -> None:
    _, rollout, _ = run(host=True)
    ring = rollout.caches.scratch
    ring.begin([], range(3))
    with pytest.raises(RuntimeError, match="out of turn"):
        ring.assemble(None, 0, torch.zeros(1), torch.zeros(1))  # type: ignore[arg-type]


def test_the_strategy_makes_them_where_it_is_asked_to() -> None:
    with pytest.raises(ValueError, match=r"strategy\.caches='disk'"):
        FsdpStream(caches="disk")
    model = make_dit()
    shape, like = model.cache_shape(Grid(16, 8)), torch.empty(0)
    made = [FsdpStream(caches=where).make_caches(shape, range(4), like, 0) for where in ("device", "host")]
    assert [isinstance(caches, HostCaches) for caches in made] == [False, True]


def test_the_next_stream_of_a_list_takes_the_same_room_in_host_memory() -> None:
    strategy, model = FsdpStream(caches="host"), make_dit()
    resident = latents_of(make_rollout(model, conditioning(), steps=2), BLOCKS)
    for _ in range(2):  # the second finds what the first has left
        given, sampler = conditioning(), EulerSampler(2)
        settings, noise = RolloutSettings(), CounterNoise(0)
        rollout = Rollout(
            model, given, sampler, settings, noise, CounterDistance(0), relay=LocalRelay(2), caches=strategy.make_caches
        )
        assert torch.equal(latents_of(rollout, BLOCKS), resident)
        parked = sum(ring.k.nbytes + ring.v.nbytes for ring in rollout.caches.rings)
        assert strategy.traffic.parked == parked
        del rollout
    shape, like = model.cache_shape(Grid(16, 8)), torch.empty(0)
    kept = [strategy.make_caches(shape, range(2), like, 0) for _ in range(2)]  # at the same time: rooms of their own
    assert kept[0].rings[0].k.data_ptr() != kept[1].rings[0].k.data_ptr()
    assert strategy.traffic.parked == 2 * parked
