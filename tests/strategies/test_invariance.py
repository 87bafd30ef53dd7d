"""Every strategy, world size and ring gives the single device's latents, bit for bit, on every rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from liveavatar.sampling.lattice import wavefront
from tests.scene import make_dit
from tests.strategies.cases import BLOCKS, CASES, StreamCase

Reports = dict[tuple[str, int], tuple[Tensor, dict[str, Any]]]

RUNS = [pytest.param(world, case, id=f"{world}_ranks-{case.name}") for world in CASES for case in CASES[world]]
SHARED = [run for run in RUNS if run.values[0] > 1]


@cache
def truth(steps: int, actors: int, dtype: str) -> Tensor:
    """The same stream on a single device, block after block, step after step."""
    case = StreamCase(steps=steps, actors=actors, dtype=dtype)
    model = make_dit(case.storage)
    model.hoist = False  # every cell makes its own conditioning
    return case.latents(model)


@pytest.fixture(scope="module")
def reports(worked: Callable[[int], Path]) -> dict[int, Reports]:
    """Workers start once per world size and run all its cases."""
    found: dict[int, Reports] = {}
    for world, cases in CASES.items():
        folder = worked(world)
        found[world] = {(case.name, rank): _read(folder, case, rank) for case in cases for rank in range(world)}
    return found


def _read(folder: Path, case: StreamCase, rank: int) -> tuple[Tensor, dict[str, Any]]:
    with safe_open(folder / f"{case.name}-{rank}.safetensors", "pt") as file:
        return file.get_tensor("latents"), json.loads(file.metadata()["about"])


@pytest.mark.parametrize(("world", "case"), RUNS)
def test_every_rank_has_the_latents_of_a_single_device(
    reports: dict[int, Reports], world: int, case: StreamCase
) -> None:
    expected = truth(case.steps, case.actors, case.dtype)
    for rank in range(world):
        latents, _ = reports[world][case.name, rank]
        assert latents.dtype == case.storage
        assert torch.equal(latents, expected), f"rank {rank}: {(latents - expected).abs().max()}"


def test_the_truth_depends_on_what_the_cases_vary() -> None:
    streams = [truth(4, 1, "float32"), truth(3, 1, "float32"), truth(3, 2, "float32"), truth(4, 1, "bfloat16").float()]
    assert all(stream.isfinite().all() and stream.std() > 0.1 for stream in streams)
    assert not any(torch.equal(a, b) for i, a in enumerate(streams) for b in streams[:i])


@pytest.mark.parametrize(("world", "case"), RUNS)
def test_memory_is_the_shards_and_as_many_units_as_slots(
    reports: dict[int, Reports], world: int, case: StreamCase
) -> None:
    for rank in range(world):
        _, about = reports[world][case.name, rank]
        slabs = about["units"].values()
        shards = sum(slabs) // world if _gathers(world, case) else 0
        assert about["ring"] == case.slots * max(slabs)
        assert about["held"] == about["ring"] + shards
        assert about["parked"] == (0 if _gathers(world, case) else sum(slabs))
        assert about["empty"], "parameters hold memory though no unit is held"
        assert about["output"] == (rank == 0)
        assert f"{case.slots} slots" in about["summary"]


@pytest.mark.parametrize(("world", "case"), RUNS)
def test_every_fetch_moves_what_this_rank_lacks_and_no_more(
    reports: dict[int, Reports], world: int, case: StreamCase
) -> None:
    for rank in range(world):
        _, about = reports[world][case.name, rank]
        assert {row[0] for row in about["fetches"]} == set(about["units"])
        assert len(about["fetches"]) == len(about["units"])  # each unit always costs the same
        for name, slab, received, host, given in about["fetches"]:
            assert slab == about["units"][name]
            assert slab % world == 0 or not _gathers(world, case)
            expected = (slab * (world - 1) // world, 0, slab // world) if _gathers(world, case) else (0, slab, 0)
            assert (received, host, given) == expected
        assert about["discarded"] == 0


@pytest.mark.parametrize(("world", "case"), SHARED)
def test_ranks_of_a_machine_share_one_copy_without_a_name(
    reports: dict[int, Reports], world: int, case: StreamCase
) -> None:
    for rank in range(world):
        _, about = reports[world][case.name, rank]
        assert about["shared"] == (0 if _gathers(world, case) else 1)
        assert about["left_behind"] == []


@pytest.mark.parametrize(("world", "case"), RUNS)
def test_parts_come_once_a_pass_a_block_or_a_stream(reports: dict[int, Reports], world: int, case: StreamCase) -> None:
    waves = wavefront(0, BLOCKS, case.steps, case.in_flight, refresh=4)
    passes = BLOCKS * case.steps if case.in_flight == 1 else sum(1 for _ in waves)
    often = {"": passes, "voice": BLOCKS, "prompt": 1, "steps": 1}
    for rank in range(world):
        _, about = reports[world][case.name, rank]
        assert about["times"] == {name: often[name.partition("/")[2]] for name in about["units"]}


def test_cells_in_flight_divide_the_fetches(reports: dict[int, Reports]) -> None:
    (one, many) = (
        reports[2][case.name, 0][1]["count"] for case in (StreamCase(2, "peers"), StreamCase(2, "peers", in_flight=4))
    )
    hot, once, block = 7, 1 + 4, 5  # parts of units: for each pass, once a stream, once a block
    assert one == hot * BLOCKS * 4 + once + block * BLOCKS
    assert many == hot * (BLOCKS + 4 - 1) + once + block * BLOCKS


def _gathers(world: int, case: StreamCase) -> bool:
    return case.source == "peers" or (case.source == "auto" and world > 1)
