"""FsdpStream as Fabric's strategy in one process: what it refuses, and a golden case through it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lightning.fabric import Fabric

from liveavatar.checkpoint.keymap_dit import DIT
from liveavatar.checkpoint.read import RandomWeights
from liveavatar.checkpoint.shards import Shards
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.strategies.single import SingleDevice
from liveavatar.strategies.stream import FsdpStream
from tests.goldens import build
from tests.goldens.case import Case
from tests.goldens.dit import dit_case
from tests.scene import conditioning, latents_of, make_dit, make_rollout, meta_dit
from tests.strategies.launch import GROUP, free_port

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process only, gone afterwards."""
    for name in GROUP:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def launched(**options: object) -> FsdpStream:
    strategy = FsdpStream(**options)
    Fabric(accelerator="cpu", devices=1, strategy=strategy).launch()
    return strategy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 1}, r"strategy\.slots=1.*at least strategy\.slots=2"),
        ({"slots": 0}, r"strategy\.slots=0"),
        ({"source": "nope"}, r"strategy\.source='nope'.*auto, peers, host"),
        ({"timeout_s": 0}, r"strategy\.timeout_s=0"),
        ({"timeout_s": -3.0}, r"strategy\.timeout_s=-3"),
    ],
)
def test_options_that_cannot_work_name_their_key(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FsdpStream(**options)


def test_fabric_is_not_to_set_the_module_up(alone: None) -> None:
    strategy = launched()
    with pytest.raises(RuntimeError, match="`place`"):
        strategy.setup_module(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("slots", [2, 3])
def test_the_stream_golden_is_met_with_streamed_weights(alone: None, slots: int) -> None:
    case = Case(GOLDENS / "dit_stream")
    weights, placed = case.folder / "weights.safetensors", []

    def streamed(config: dict) -> AvatarDiT:
        strategy = launched(slots=slots)
        model = build.meta_dit(config, weights)
        strategy.place(model, Shards([weights], DIT), torch.float32)
        model.register_forward_hook(_is_bare)
        placed.append(strategy)
        twin = build.dit(config, weights)
        _lend(model.embed, twin.embed, "embed_time")
        _lend(model.embed.frame_packer, twin.embed.frame_packer, "forward")
        return model

    dit_case(case, make=streamed)
    case.finish()
    (strategy,) = placed
    assert strategy.traffic.fetches > 9 * 8
    strategy.release()


def _lend(part: torch.nn.Module, twin: torch.nn.Module, method: str) -> None:
    """Let a twin with weights answer where the case asks a part between passes, when its own weights are away."""
    own, other = getattr(part, method), getattr(twin, method)

    def either(*given: object) -> object:
        return (own if next(part.parameters()).numel() else other)(*given)

    setattr(part, method, either)


def _is_bare(model: AvatarDiT, given: object, passed: object) -> None:
    assert sum(p.numel() for p in model.parameters()) == 0


def test_traffic_and_memory_are_accounted_for(alone: None) -> None:
    strategy = launched(slots=3)
    model = meta_dit()
    strategy.place(model, RandomWeights(0), torch.float32)
    slabs = {name: layout.nbytes for name, layout in strategy.ring.layouts.items()}
    assert strategy.traffic.parked == sum(slabs.values())
    assert strategy.traffic.held == 3 * max(slabs.values())
    assert strategy.traffic.host == strategy.traffic.fetches == 0
    latents_of(make_rollout(model, conditioning(), steps=1), 1)
    assert strategy.traffic.fetches == len(slabs)  # nothing is fetched ahead of a pass that never comes
    assert strategy.traffic.host == sum(slabs.values())
    assert strategy.traffic.received == 0
    strategy.release()
    assert strategy.ring is None
    strategy.release()


def test_a_single_device_holds_every_slab_once() -> None:
    strategy = SingleDevice()
    model = meta_dit()
    strategy.place(model, RandomWeights(0), torch.bfloat16)
    exact = 2 * sum(p.numel() for p in make_dit().parameters())
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in model.parameters())
    assert exact <= strategy.traffic.held <= exact + 256 * len(list(model.parameters()))
    assert (strategy.traffic.host, strategy.traffic.received) == (0, 0)
