"""Units that compute compiled: the same functions for all of them, on every strategy, whatever their weights lie in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tests.strategies.compile_worker import WAYS, Way
from tests.strategies.launch import start_group, wait_for

Reports = dict[tuple[str, int], tuple[Tensor | None, dict[str, Any]]]
FUNCTIONS = 3 + 1 + 1 + 1  # of a block, an injector, its tone, and the head
SHAPES = FUNCTIONS + 3 + 2  # a block serves a prefill too, and the first one finds tokens as `embed` lays them
ANEW = {"small": SHAPES, "full": SHAPES, "layers": SHAPES, "shared": 2 * SHAPES}
"""At most so many graphs come anew: with other linear layers, with the classes of FSDP2 (once for all its ways), where
tokens arrive in rooms of messages, and where ranks have runs of tokens of their own.
"""
RUNS = [pytest.param(world, way, id=f"{world}_ranks-{way.name}") for world in WAYS for way in WAYS[world]]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Reports]:
    found: dict[int, Reports] = {}
    for world, ways in WAYS.items():
        folder = tmp_path_factory.mktemp(f"compiled_{world}")
        wait_for(start_group("tests.strategies.compile_worker", world, str(folder)), timeout_s=300)
        found[world] = {(way.name, rank): _read(folder, way, rank) for way in ways for rank in range(world)}
    return found


def _read(folder: Path, way: Way, rank: int) -> tuple[Tensor | None, dict[str, Any]]:
    with safe_open(folder / f"{way.name}-{rank}.safetensors", "pt") as file:
        held = file.get_tensor("latents") if "latents" in file.keys() else None  # noqa: SIM118
        return held, json.loads(file.metadata()["about"])


def _truth(way: Way) -> str:
    if way.cache:
        return "cached plain"
    if way.kind:
        return "fp8 plain" if way.name.startswith("fp8") else "small plain"
    return "shared plain" if way.ulysses > 1 else "plain"


@pytest.mark.parametrize(("world", "way"), RUNS)
def test_what_is_traced_gives_the_same_latents(reports: dict[int, Reports], world: int, way: Way) -> None:
    for rank in range(world):
        found, _ = reports[world][way.name, rank]
        expected = reports[world][_truth(way), rank][0]
        assert expected is not None
        if found is None:
            assert rank > 0  # a rank of a pipeline that finishes nothing
        elif way.cache and way.ulysses > 1:  # a last bit may turn the rounding of a number in the cache
            assert float((found - expected).norm() / expected.norm()) < 1e-3
        elif way.wide:
            assert found.isfinite().all()
            assert not torch.equal(found, expected)  # a model of more layers
        else:
            assert torch.equal(found, expected), (found - expected).abs().max()


@pytest.mark.parametrize("world", WAYS)
def test_one_compiled_function_serves_all_units_and_all_strategies(reports: dict[int, Reports], world: int) -> None:
    """More layers, slabs in any slot, gathered shards: all is served by what the first stream compiled."""
    compiled = [way for way in WAYS[world] if way.backend is not None]
    for rank in range(world):
        told = {way.name: reports[world][way.name, rank][1] for way in compiled}
        assert told[compiled[0].name]["graphs"] == SHAPES
        for way in compiled[1:]:
            assert told[way.name]["graphs"] <= ANEW.get(way.name, 0), way.name
        assert not any(about["breaks"] for about in told.values())
