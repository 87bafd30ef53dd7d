"""Cuts that cannot work are refused while the work is divided, before any weight is read, naming their key."""

from __future__ import annotations

from typing import Any

import pytest

from liveavatar.strategies.fsdp import FsdpFull, HsdpOffload
from liveavatar.strategies.pipeline import DiagonalPipeline, TimestepPipeline, layer_costs
from liveavatar.strategies.replicated import Replicated
from liveavatar.strategies.single import SingleDevice
from liveavatar.strategies.stream import FsdpStream
from tests.scene import meta_dit


@pytest.mark.parametrize(
    ("kind", "options", "world", "decode", "message"),
    [
        (DiagonalPipeline, {}, 4, "inline", r"fabric\.devices=4: 3 layers cannot be divided among 4.*at most 3"),
        (DiagonalPipeline, {}, 5, "rank", r"fabric\.devices=5: 3 layers cannot be divided among 4"),
        (DiagonalPipeline, {}, 1, "rank", r"parallel\.decode=rank takes a rank of its own.*fabric\.devices=2"),
        (DiagonalPipeline, {}, 2, "nope", r"parallel\.decode='nope' is unknown; write inline or rank"),
        (DiagonalPipeline, {}, 2, "split", r"decode=split needs the latents on every rank.*\+strategy=replicated"),
        (TimestepPipeline, {}, 13, "inline", r"fabric\.devices=13: 3 layers cannot be divided among 4"),
        (TimestepPipeline, {}, 1, "rank", r"parallel\.decode=rank takes a rank of its own"),
        (
            DiagonalPipeline,
            {"source": "peers"},
            2,
            "inline",
            r"strategy\.source=peers.*no two ranks compute the same ones",
        ),
        (DiagonalPipeline, {"source": "host", "resident": 3}, 2, "inline", r"resident=3, but no rank has more than 2"),
        (DiagonalPipeline, {"step_groups": 3}, 2, "inline", r"strategy\.step_groups=3 cannot be.*allow 1 to 2"),
        (DiagonalPipeline, {"table": ["decode"]}, 1, "rank", r"fabric\.devices=1: the stage table covers layers \[\]"),
        (DiagonalPipeline, {"costs": [1]}, 2, "inline", r"strategy\.costs has 1 numbers"),
        (HsdpOffload, {"shard_size": 3}, 4, "inline", r"strategy\.shard_size=3 does not divide 4.*\[1, 2, 4\]"),
        (HsdpOffload, {}, 2, "rank", r"parallel\.decode=rank, but strategy hsdp_offload"),
        (FsdpFull, {}, 2, "rank", r"parallel\.decode=rank, but strategy fsdp_full"),
        (FsdpStream, {}, 2, "rank", r"parallel\.decode=rank, but strategy fsdp_stream"),
        (FsdpStream, {"resident": 4}, 2, "inline", r"strategy\.resident=4, but the model has 3"),
        (SingleDevice, {}, 1, "rank", r"parallel\.decode=rank, but strategy single_device"),
        (SingleDevice, {}, 1, "split", r"decode=split divides.*single_device has one: add \+strategy=replicated"),
        (Replicated, {}, 2, "rank", r"parallel\.decode=rank, but strategy replicated.*inline or =split"),
    ],
)
def test_a_division_that_cannot_work_names_its_key(
    monkeypatch: pytest.MonkeyPatch, kind: Any, options: dict[str, Any], world: int, decode: str, message: str
) -> None:
    monkeypatch.setattr(kind, "world_size", world, raising=False)
    monkeypatch.setattr(kind, "global_rank", 0, raising=False)
    with pytest.raises(ValueError, match=message):
        kind(**options).arrange(meta_dit(), 4, decode)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (FsdpFull, {"wrap": "nope"}, r"strategy\.wrap='nope'.*units, reference"),
        (FsdpFull, {"unshard": "nope"}, r"strategy\.unshard='nope'.*unit, whole"),
        (FsdpFull, {"prefetch": -1}, r"strategy\.prefetch=-1"),
        (HsdpOffload, {"shard_size": 0}, r"strategy\.shard_size=0"),
        (FsdpStream, {"resident": -1}, r"strategy\.resident=-1"),
        (FsdpStream, {"spill_dir": "/no/such/folder"}, r"strategy\.spill_dir=/no/such/folder is no folder"),
        (DiagonalPipeline, {"source": "auto"}, r"strategy\.source='auto'.*device, host, disk, peers"),
        (TimestepPipeline, {"slots": 1, "source": "host"}, r"strategy\.slots=1"),
        (TimestepPipeline, {"caches": "disk"}, r"strategy\.caches='disk'"),
        (DiagonalPipeline, {"step_groups": 2, "table": ["decode"]}, r"step_groups=2 and strategy\.table both"),
        (DiagonalPipeline, {"timeout_s": 0.0}, r"strategy\.timeout_s=0"),
    ],
)
def test_options_that_cannot_work_name_their_key(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_layers_cost_what_their_units_weigh() -> None:
    model = meta_dit()
    costs = layer_costs(model)
    assert sum(costs) == sum(parameter.numel() for parameter in model.parameters())
    block = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    assert costs[1] == block  # it has no injector
    assert costs[0] > costs[2] > block


@pytest.mark.parametrize(
    ("kind", "world", "heads", "size", "message"),
    [
        (Replicated, 3, 40, 3, r"ulysses_size=3 does not divide the 40 attention heads.*one of 1, 2, 4, 5, 8, 10, and"),
        (FsdpStream, 4, 2, 4, r"ulysses_size=4 does not divide the 2 attention heads.*one of 1, 2, and"),
        (FsdpFull, 6, 40, 4, r"ulysses_size=4 does not divide the 6 ranks.*one of 1, 2, or fabric\.devices=4"),
        (HsdpOffload, 5, 40, 2, r"ulysses_size=2 does not divide the 5 ranks.*one of 1, 5, or fabric\.devices=2"),
        (Replicated, 2, 40, 0, r"ulysses_size=0 must be a whole number from 1"),
        (Replicated, 2, 40, "two", r"ulysses_size='two' must be a whole number from 1"),
        (SingleDevice, 1, 40, 2, r"ulysses_size=2 divides work.*single_device has one: add \+strategy=replicated"),
        (
            DiagonalPipeline,
            2,
            40,
            2,
            r"ulysses_size=2: ranks of strategy diagonal_pipeline.*\+strategy=replicated",
        ),
        (TimestepPipeline, 2, 40, 2, r"ulysses_size=2: ranks of strategy timestep_pipeline divide steps or layers"),
    ],
)
def test_a_degree_that_cannot_work_is_told_those_that_do(
    monkeypatch: pytest.MonkeyPatch, kind: Any, world: int, heads: int, size: Any, message: str
) -> None:
    monkeypatch.setattr(kind, "world_size", world, raising=False)
    monkeypatch.setattr(kind, "global_rank", 0, raising=False)
    with pytest.raises(ValueError, match=message):
        kind().arrange(meta_dit(num_heads=heads, dim=2 * heads), 4, "inline", size)
