"""Every strategy, cut and world size gives the single device's latents, bit for bit, and holds and moves what it says.

`test_invariance.py` looks at the ring of `fsdp_stream`; here are pipelines, FSDP2, and the ring's other options.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, safe_open
from torch import Tensor

from liveavatar.sampling.stages import StageTable, layer_table, step_table
from liveavatar.strategies.pipeline import layer_costs
from tests.goldens.case import Case
from tests.goldens.dit import _check_latents, settings_of
from tests.scene import conditioning, latents_of, make_dit, make_rollout
from tests.strategies.cases import BLOCKS
from tests.strategies.topologies import GOLDENS, TOPOLOGIES, Topology
from tests.strategies.topology_worker import DATA

Worked = Callable[[int], Path]

RUNS = [
    pytest.param(world, case, id=f"{world}_ranks-{case.name}") for world in TOPOLOGIES for case in TOPOLOGIES[world]
]
PIPELINES = [run for run in RUNS if run.values[1].is_pipeline]
SENDING = [run for run in PIPELINES if run.values[0] > 1 and run.values[1].blocks == BLOCKS]
FSDP2 = [run for run in RUNS if run.values[1].strategy in ("fsdp_full", "hsdp_offload")]

DIM, TOKENS, SINK_TOKENS, WORDS = 32, 3 * 8 * 4, 80, 24
"""Of micro, on the scene's grid of 8 × 4 tokens a latent frame."""


@cache
def truth(steps: int, actors: int, dtype: str, layers: int) -> Tensor:
    """The same stream on a single device, block after block, step after step."""
    case = Topology("", steps, actors=actors, dtype=dtype, layers=layers)
    model = make_dit(case.storage, **case.sizes)
    model.hoist = False  # every cell makes its own conditioning
    return latents_of(make_rollout(model, conditioning(actors=actors), steps=steps), BLOCKS)


@cache
def report(folder: Path, name: str, rank: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = folder / f"{name}-{rank}.safetensors"
    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()["about"])


def table_of(world: int, case: Topology) -> StageTable:
    make = layer_table if case.strategy == "diagonal_pipeline" else step_table
    return make(world, case.steps, layer_costs(case.model()), case.decode == "rank")


def test_names_of_cases_are_distinct() -> None:
    for cases in TOPOLOGIES.values():
        assert max(Counter(case.name for case in cases).values()) == 1


@pytest.mark.parametrize(("world", "case"), RUNS)
def test_finished_blocks_are_those_of_a_single_device(worked: Worked, world: int, case: Topology) -> None:
    expected = truth(case.steps, case.actors, case.dtype, case.layers)
    for rank in range(world):
        found, about = report(worked(world), case.name, rank)
        assert about["output"] == (rank == 0)
        if rank not in case.finishers(world):
            assert not found
            continue
        assert list(found) == [f"block_{number}" for number in range(case.blocks)]
        for number in range(case.blocks):
            latents = found[f"block_{number}"]
            assert latents.dtype == case.storage
            assert torch.equal(latents, expected[number]), f"rank {rank}, block {number}"


def test_the_truth_depends_on_what_the_cases_vary() -> None:
    kinds = {(c.steps, c.actors, c.dtype, c.layers) for cases in TOPOLOGIES.values() for c in cases}
    streams = [truth(*kind).float() for kind in sorted(kinds)]
    assert len(streams) >= 8
    assert all(stream.isfinite().all() and stream.std() > 0.1 for stream in streams)
    assert not any(torch.equal(a, b) for i, a in enumerate(streams) for b in streams[:i])


@pytest.mark.parametrize(("world", "case"), PIPELINES)
def test_ranks_of_a_pipeline_hold_their_own_units_and_caches(worked: Worked, world: int, case: Topology) -> None:
    whole = make_dit(case.storage, **case.sizes)
    alone = make_rollout(whole, conditioning(), steps=case.steps).caches
    ring, sink = 2 * alone.rings[0].k.nbytes, 2 * alone.sink.k.nbytes
    table = table_of(world, case)
    for rank, stage in enumerate(table.stages):
        _, about = report(worked(world), case.name, rank)
        whole.stage = stage.layers
        own = {f"{unit}.{name}" for unit, module in whole.units().items() for name, _ in module.named_parameters()}
        sizes = {name: parameter.nbytes * (name in own) for name, parameter in whole.named_parameters()}
        assert about["parameters"] == sizes
        held = about["traffic"]["held"]
        assert sum(sizes.values()) <= held <= sum(sizes.values()) + 256 * len(own)
        assert held <= about["stored"] <= held + 256 * len(whole.units())
        assert about["rings"] == [ring * len(stage.layers) // case.layers] * len(stage.steps)
        assert about["sink"] == sink * len(stage.layers) // case.layers
        assert (f"rank {rank}: decodes" in about["summary"]) == (not stage.computes)
    whole.stage = range(case.layers)


@pytest.mark.parametrize(("world", "case"), SENDING)
def test_messages_are_as_many_and_as_large_as_the_table_says(worked: Worked, world: int, case: Topology) -> None:
    received = expected_messages(world, case)
    for rank in range(world):
        _, about = report(worked(world), case.name, rank)
        size = message_bytes(case)
        assert about["traffic"]["received"] == sum(size[kind] * n for kind, n in received[rank].items())
        assert (about["traffic"]["host"], about["traffic"]["fetches"]) == (0, 0)
    moved = [report(worked(world), case.name, rank)[1]["traffic"] for rank in range(world)]
    assert sum(traffic["sent"] for traffic in moved) == sum(traffic["received"] for traffic in moved)


def expected_messages(world: int, case: Topology) -> list[Counter[str]]:
    """What each rank reads: a hidden state per cell along a path, latents from step to step and of finished blocks."""
    table, blocks = table_of(world, case), case.blocks  # with a refresh among them
    found: list[Counter[str]] = [Counter() for _ in range(world)]
    for step in range(case.steps):
        path = table.path(step)
        for rank in path[1:]:
            found[rank]["cell"] += blocks
            found[rank]["sink"] += 2 * (step == table.stages[rank].steps.start)
        if step:
            came = table.path(step - 1)[-1]
            for rank in {path[0], path[-1]} - {came}:
                found[rank]["latents"] += blocks
    for rank, stage in enumerate(table.stages):
        if not stage.computes:
            found[rank]["latents"] += blocks
        elif rank != table.last:
            found[rank]["latents"] += 1
    return found


def message_bytes(case: Topology) -> dict[str, int]:
    item, single = case.storage.itemsize, 4
    times = (DIM + 6 * DIM) * single
    voice = case.actors * 3 * (5 * DIM + DIM) * single
    return {
        "latents": 16 * 3 * 16 * 8 * item,
        "cell": TOKENS * DIM * item + times + voice,
        "sink": SINK_TOKENS * DIM * item + times + WORDS * DIM * item,
    }


@pytest.mark.parametrize(("world", "case"), SENDING)
def test_messages_travel_in_rooms_made_once(worked: Worked, world: int, case: Topology) -> None:
    seen = [row for rank in range(world) for row in report(worked(world), case.name, rank)[1]["rooms"]]
    assert seen
    assert all(rooms <= 2 * kinds for kinds, rooms, _ in seen)
    assert max(messages for _, _, messages in seen) >= BLOCKS


@pytest.mark.parametrize(("world", "case"), FSDP2)
def test_fsdp2_goes_back_to_its_shards_unless_told_otherwise(worked: Worked, world: int, case: Topology) -> None:
    options = case.options
    stays = options.get("unshard") == "whole" or not options.get("reshard_after_forward", True)
    stays = stays or options.get("wrap") == "reference"  # the root is not given back after a pass
    whole = dict(make_dit(case.storage).named_parameters())
    parts = options.get("shard_size", world)
    for rank in range(world):
        _, about = report(worked(world), case.name, rank)
        assert about["sharded"] == (not stays)
        shards = {name: _rows(parameter, rank % parts, parts) for name, parameter in whole.items()}
        if not stays:
            assert about["parameters"] == shards
        held, parked = (0, sum(shards.values())) if case.strategy == "hsdp_offload" else (sum(shards.values()), 0)
        assert (about["traffic"]["held"], about["traffic"]["parked"]) == (held, parked)


def _rows(parameter: Tensor, number: int, parts: int) -> int:
    pieces = parameter.chunk(parts)
    return pieces[number].nbytes if number < len(pieces) else 0


@pytest.mark.parametrize("strategy", ["diagonal_pipeline", "timestep_pipeline"])
@pytest.mark.parametrize("name", GOLDENS)
def test_two_ranks_of_a_pipeline_meet_the_golden_streams(worked: Worked, strategy: str, name: str) -> None:
    case = Case(DATA / name)
    finished = load_file(worked(2) / f"{name}-{strategy}-0.safetensors")
    assert not load_file(worked(2) / f"{name}-{strategy}-1.safetensors")
    for run_name, blocks in finished.items():
        _check_latents(case, run_name, blocks, settings_of(case).blocks_per_clip)
    assert set(case.errors) == {stored for stored in case.names() if stored.startswith("latents")}
    assert not case.failures, case.failures
