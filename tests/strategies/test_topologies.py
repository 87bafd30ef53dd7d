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

from liveavatar.checkpoint.slab import SlabLayout
from liveavatar.sampling.stages import Stage, StageTable, grid_table, occupancy, step_table, ticks
from liveavatar.strategies.cuts import layer_costs, written_table
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
PLACED = [run for run in PIPELINES if run.values[1].source == "device"]
STREAMED = [run for run in PIPELINES if run.values[1].source == "peers" or run.values[1].plainly_streamed]
"""Whose passes all bring in the same units: parts that prepare conditioning are counted in `test_hoist`."""
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
    costs, decodes, options = layer_costs(case.model()), case.decode == "rank", case.options
    if "table" in options:
        return written_table(options["table"], world, case.steps, case.layers, decodes)
    if case.strategy == "timestep_pipeline":
        return step_table(world, case.steps, costs, decodes)
    extra = options.get("decode_cost", 0.0) * sum(costs) / len(costs)
    return grid_table(world, case.steps, costs, decodes, options.get("step_groups", 1), extra)


def own_units(case: Topology, stage: Stage) -> dict[str, int]:
    """The units of a stage, and the bytes of each."""
    model = make_dit(case.storage, **case.sizes)
    model.stage = stage.layers
    return {name: SlabLayout.of(unit, case.storage).nbytes for name, unit in model.units().items()}


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


@pytest.mark.parametrize(("world", "case"), PLACED)
def test_ranks_of_a_pipeline_hold_their_own_units_and_caches(worked: Worked, world: int, case: Topology) -> None:
    whole = make_dit(case.storage, **case.sizes)
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
        assert (f"rank {rank}: decodes" in about["summary"]) == (not stage.computes)


@pytest.mark.parametrize(("world", "case"), PIPELINES)
def test_caches_are_divided_by_the_ranks(worked: Worked, world: int, case: Topology) -> None:
    alone = make_rollout(make_dit(case.storage, **case.sizes), conditioning(), steps=case.steps).caches
    ring, sink = 2 * alone.rings[0].k.nbytes, 2 * alone.sink.k.nbytes
    whole = 0
    for rank, stage in enumerate(table_of(world, case).stages):
        _, about = report(worked(world), case.name, rank)
        assert about["rings"] == [ring * len(stage.layers) // case.layers] * len(stage.steps)
        assert about["sink"] == sink * len(stage.layers) // case.layers
        whole += sum(about["rings"])
    assert whole == ring * case.steps


@pytest.mark.parametrize(("world", "case"), STREAMED)
def test_a_streamed_stage_holds_its_ring_and_what_its_mates_leave_it(
    worked: Worked, world: int, case: Topology
) -> None:
    table, options = table_of(world, case), case.options
    slots, resident = options.get("slots", 2), options.get("resident", 0)
    parked = Counter({stage.layers: 0 for stage in table.stages})
    for rank, stage in enumerate(table.stages):
        _, about = report(worked(world), case.name, rank)
        traffic, units = about["traffic"], own_units(case, stage)
        mates = sum(other.layers == stage.layers for other in table.stages)
        caches = sum(about["rings"]) * (options.get("caches") == "host")
        if not stage.computes or (case.source == "peers" and mates == 1):
            assert (traffic["held"], traffic["parked"] - caches) == (sum(units.values()), 0)
            continue
        streamed = sum(about["ring"].values())
        settled = sorted(units[name] for name in units.keys() - about["ring"].keys())
        assert len(settled) == min(resident, len(stage.layers))
        shard = streamed // mates if case.source == "peers" else 0
        assert about["ring_bytes"] == slots * max(about["ring"].values())
        assert traffic["held"] == sum(settled) + shard + about["ring_bytes"]
        assert traffic["parked"] - caches == (0 if case.source == "peers" else streamed)
        assert (about["stored"], traffic["caches_in"] > 0) == (sum(settled) + 256 * len(settled), caches > 0)
        parked[stage.layers] = traffic["parked"] - caches
        assert f"weights from {case.source}" in about["summary"]
        assert ("in lock-step" in about["summary"]) == (case.source == "peers")
    if case.source != "peers" and not resident and len({len(path) for path in table.paths}) == 1:
        model = make_dit(case.storage, **case.sizes)
        whole = sum(SlabLayout.of(unit, case.storage).nbytes for unit in model.units().values())
        assert sum(parked.values()) == whole  # once for the machine


@pytest.mark.parametrize(("world", "case"), STREAMED)
def test_a_pass_brings_in_each_unit_of_a_stage_once(worked: Worked, world: int, case: Topology) -> None:
    """Ranks in lock-step make a pass in every tick; others in every tick in which they have a cell."""
    table = table_of(world, case)
    schedule = list(ticks(table, 0, case.blocks, 4, case.in_flight))
    messages, size = expected_messages(world, case), message_bytes(case)
    for rank, stage in enumerate(table.stages):
        _, about = report(worked(world), case.name, rank)
        if about["ring"] is None:
            continue
        traffic, slabs = about["traffic"], about["ring"]
        mates = sum(other.layers == stage.layers for other in table.stages)
        passes = len(schedule) if case.source == "peers" else sum(rank in dict(tick) for tick in schedule)
        ahead = list(slabs)[: case.options.get("slots", 2) - 1]  # of a pass that never comes
        ahead = ahead if case.source == "peers" else []  # in lock-step nobody says which pass is the last
        assert about["passes"] == (passes if case.source == "peers" else None)
        assert traffic["fetches"] == passes * len(slabs) + len(ahead)
        moved = passes * sum(slabs.values()) + sum(slabs[name] for name in ahead)
        told = sum(size[kind] * n for kind, n in messages[rank].items())
        if case.source == "peers":
            assert traffic["received"] - told == moved * (mates - 1) // mates
        else:
            assert (traffic["host"], traffic["received"]) == (moved, told)


@pytest.mark.parametrize(("world", "case"), PIPELINES)
def test_a_relay_tells_how_busy_its_pipeline_is(worked: Worked, world: int, case: Topology) -> None:
    table = table_of(world, case)
    workers = sum(stage.computes for stage in table.stages)
    expected = occupancy(ticks(table, 0, BLOCKS, 4, case.in_flight), workers)
    for rank in range(world):
        assert tuple(report(worked(world), case.name, rank)[1]["occupancy"]) == expected


@pytest.mark.parametrize(("world", "case"), [run for run in SENDING if run.values[1].source != "peers"])
def test_messages_are_as_many_and_as_large_as_the_table_says(worked: Worked, world: int, case: Topology) -> None:
    received = expected_messages(world, case)
    for rank in range(world):
        _, about = report(worked(world), case.name, rank)
        size = message_bytes(case)
        assert about["traffic"]["received"] == sum(size[kind] * n for kind, n in received[rank].items())
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
    table, cells = table_of(world, case), case.in_flight
    most = table.under_way(cells) if "table" in case.options else cells
    assert all(rooms <= (most + 1) * kinds + 1 for kinds, rooms, _ in seen)  # the first block waits for the refresh
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
