"""Parts of units that move by themselves: what they are, and the bytes that leave the hot loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from liveavatar.checkpoint.read import RandomWeights
from liveavatar.checkpoint.slab import SlabLayout
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.sampling.conditioning import RolloutSettings
from liveavatar.sampling.lattice import wavefront
from liveavatar.sampling.noise import CounterDistance, CounterNoise
from liveavatar.sampling.rollout import Rollout
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.settings import hoists
from liveavatar.strategies.fsdp import FsdpFull, HsdpOffload
from liveavatar.strategies.pipeline import DiagonalPipeline
from liveavatar.strategies.single import SingleDevice
from liveavatar.strategies.stream import FsdpStream
from tests.scene import conditioning, latents_of, make_dit, make_rollout, meta_dit
from tests.strategies.test_stream import alone, launched  # noqa: F401

BLOCKS, STEPS = 7, 4


@pytest.mark.parametrize("stage", [range(3), range(1, 2), range(2, 3)])
def test_parts_hold_every_parameter_once(stage: range) -> None:
    model = meta_dit()
    model.stage = stage
    owned = [f"{unit}.{name}" for unit, module in model.units().items() for name, _ in module.named_parameters()]
    for hoist in (True, False):
        model.hoist = hoist
        parts = model.parts()
        listed = [f"{name.partition('/')[0]}.{p}" for name, part in parts.items() for p in part.names]
        assert sorted(listed) == sorted(owned)
        assert all(part.names for part in parts.values())
    assert list(parts) == list(model.units())


def test_the_hot_loop_of_the_released_model_streams_25_of_33_gigabytes() -> None:
    model = meta_dit("s2v_14b")
    sizes = {name: SlabLayout.of(u, torch.bfloat16, names=n).nbytes for name, (u, n) in model.parts().items()}
    cold = {kind: sum(s for n, s in sizes.items() if n.endswith(f"/{kind}")) for kind in ("steps", "prompt", "voice")}
    hot = sum(sizes.values()) - sum(cold.values())
    assert sum(sizes.values()) == pytest.approx(32.59e9, rel=1e-3)
    assert hot == pytest.approx(25.2e9, rel=5e-3)
    assert cold["prompt"] == pytest.approx(4.29e9, rel=5e-3)
    assert cold["voice"] == pytest.approx(2.71e9, rel=5e-3)
    assert cold["steps"] == pytest.approx(0.37e9, rel=5e-3)
    largest = max(sizes, key=lambda name: sizes[name])
    assert largest.startswith("blocks.")
    assert "/" not in largest  # so that a slot is no larger than a block's hot part
    assert sizes[largest] == pytest.approx(597.9e6, rel=1e-3)


@pytest.fixture(scope="module")
def truth() -> Tensor:
    model = make_dit()
    model.hoist = False
    return latents_of(make_rollout(model, conditioning()), BLOCKS)


def streamed(cells: int, **options: Any) -> tuple[Tensor, FsdpStream, AvatarDiT]:
    """A stream through fsdp_stream in this process."""
    hoist = options.pop("hoist", 1)
    strategy, model = launched(**options), meta_dit()
    model.hoist = hoist
    strategy.place(model, RandomWeights(0), torch.float32)
    rollout = Rollout(
        model,
        conditioning(),
        EulerSampler(STEPS),
        RolloutSettings(),
        CounterNoise(0),
        CounterDistance(0),
        relay=strategy.relay(STEPS, cells),
        caches=strategy.make_caches,
    )
    return latents_of(rollout, BLOCKS), strategy, model


OPTIONS: tuple[tuple[int, dict[str, Any]], ...] = (
    (1, {"slots": 2, "debug": True}),
    (2, {"slots": 3, "source": "disk", "caches": "host"}),
    (3, {"slots": 2, "resident": 1, "debug": True}),
    (4, {"slots": 5, "resident": 3}),
    (1, {"slots": 20, "hoist": 3}),
    (4, {"slots": 2, "hoist": 4, "debug": True}),
)


@pytest.mark.parametrize(("cells", "options"), OPTIONS, ids=str)
def test_bytes_are_hot_parts_for_each_pass_and_cold_ones_once(
    alone: None,  # noqa: F811
    truth: Tensor,
    cells: int,
    options: dict[str, Any],
) -> None:
    latents, strategy, model = streamed(cells, **options)
    assert torch.equal(latents, truth)
    ring = strategy.ring
    assert ring is not None
    size = {name: layout.nbytes for name, layout in ring.layouts.items()}
    kinds = {name: name.partition("/")[2] for name in size}
    passes = BLOCKS * STEPS if cells == 1 else sum(1 for _ in wavefront(0, BLOCKS, STEPS, cells, refresh=4))
    often = {"": passes, "steps": 1, "prompt": 1, "voice": -(-BLOCKS // options.get("hoist", 1))}
    assert strategy.traffic.host == sum(size[name] * often[kinds[name]] for name in size)
    assert strategy.traffic.fetches == sum(often[kinds[name]] for name in size)
    assert ring.discarded == 0
    stays = {name for name in model.parts() if name not in size}
    assert len(stays) == options.get("resident", 0)
    assert all("/" not in name for name in stays)  # what a resident block prepares conditioning with streams as well
    assert ring.nbytes == options["slots"] * max(size.values())
    assert "of the weights prepare conditioning" in strategy.summary()
    strategy.release()


def test_hoisting_saves_bytes_and_can_be_left_out(alone: None, truth: Tensor) -> None:  # noqa: F811
    plain, whole, model = streamed(1, hoist=False)
    assert torch.equal(plain, truth)
    assert list(model.parts()) == list(model.units())
    _, parts, _ = streamed(1)
    saved = whole.traffic.host - parts.traffic.host
    cold = {name: layout.nbytes for name, layout in parts.ring.layouts.items() if "/" in name}  # type: ignore[union-attr]
    often = {name: BLOCKS if name.endswith("voice") else 1 for name in cold}
    expected = sum(size * (BLOCKS * STEPS - often[name]) for name, size in cold.items())
    assert expected <= saved + 256 * BLOCKS * STEPS * len(cold)  # slabs are padded
    assert saved <= expected + 256 * BLOCKS * STEPS * len(cold)
    assert saved > 0.1 * whole.traffic.host
    for strategy in (whole, parts):
        strategy.release()


@pytest.mark.parametrize(
    ("asked", "kind", "expected"),
    [
        ("auto", SingleDevice, True), ("auto", FsdpStream, True), ("auto", DiagonalPipeline, True),
        ("auto", FsdpFull, False), ("auto", HsdpOffload, False), (True, FsdpStream, True),
        (False, FsdpStream, 0), (False, FsdpFull, 0), (4, DiagonalPipeline, 4), (0, HsdpOffload, 0),
    ],
)  # fmt: skip
def test_the_option_follows_the_strategy(asked: Any, kind: Any, expected: int) -> None:
    assert hoists(OmegaConf.create({"parallel": {"hoist": asked}}), kind(), "same") == expected


def test_the_option_is_refused_where_it_cannot_be_met() -> None:
    for asked, message in (
        (2, r"parallel\.hoist=2, but strategy fsdp_full"),
        ("nope", r"parallel\.hoist='nope'"),
    ):
        with pytest.raises(ValueError, match=message):
            hoists(OmegaConf.create({"parallel": {"hoist": asked}}), FsdpFull(), "same")
