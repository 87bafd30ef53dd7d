"""The real configuration against what is published: names, shapes, counts, LoRA targets, cache sizes. All on meta."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from liveavatar.checkpoint.keymap_dit import DIT
from liveavatar.models.dit.cache import StreamCaches
from liveavatar.models.dit.context import Grid
from liveavatar.models.dit.model import AvatarDiT
from tests.scene import meta_dit

MANIFESTS = Path(__file__).resolve().parents[2] / "data" / "manifests"


def manifest(name: str) -> dict[str, Any]:
    return json.loads((MANIFESTS / f"{name}.json").read_text())


@cache
def real() -> AvatarDiT:
    return meta_dit("s2v_14b")


def test_names_and_shapes_are_the_checkpoints_both_ways() -> None:
    published = manifest("dit_causal_s2v_14b")
    ours = {name: list(tensor.shape) for name, tensor in real().state_dict().items()}
    assert DIT.rename(published) == ours
    assert {DIT.to_published(name): shape for name, shape in ours.items()} == published
    assert len(ours) == 1260
    assert list(real().state_dict()) == [name for name, _ in real().named_parameters()]


def test_parameters_are_counted_as_published() -> None:
    assert sum(p.numel() for p in real().parameters()) == 16_295_755_609
    assert {sum(p.numel() for p in block.parameters()) for block in real().blocks} == {351_394_304}
    assert all(p.is_meta for p in real().parameters())


def test_injectors_follow_the_blocks_of_the_checkpoint() -> None:
    layers = [0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39]
    names = list(real().units())
    assert len(names) == 1 + 40 + 2 * 12 + 1
    for j, layer in enumerate(layers):
        place = names.index(f"blocks.{layer}")
        assert names[place + 1 : place + 3] == [f"adain.{j}", f"injectors.{j}"]


def test_lora_targets_are_exactly_the_linears_of_these_endings() -> None:
    targets = manifest("lora_targets")["targets"]
    endings = (".q", ".k", ".v", ".o", ".ffn.0", ".ffn.2")
    linears = {name for name, module in real().named_modules() if isinstance(module, nn.Linear)}
    published = {DIT.to_published(f"{name}.weight").removesuffix(".weight") for name in linears}
    assert {name for name in published if name.endswith(endings)} == set(targets)
    assert {DIT.to_ours(f"{target}.weight").removesuffix(".weight") for target in targets} <= linears
    assert len(set(targets)) == len(targets) == 448


def caches_of(grid: Grid, steps: int = 4) -> StreamCaches:
    like = torch.empty(0, dtype=torch.bfloat16, device="meta")
    return StreamCaches(real().cache_shape(grid), steps, like)


def nbytes(*tensors: torch.Tensor) -> int:
    return sum(math.prod(t.shape) * t.itemsize for t in tensors)


@pytest.mark.parametrize("size", ["704x384", "720x400", "384x256", "688x368"])
def test_caches_have_the_bytes_of_the_reference(size: str) -> None:
    row = manifest("kv_cache_shapes")[size]
    grid = Grid(*row["latent_hw"])
    caches, expected = caches_of(grid), row["bytes_bf16"]
    ring, sink = caches.rings[0], caches.sink
    assert grid.frame_tokens == row["tokens_per_latent_frame"]
    assert 3 * grid.frame_tokens == row["tokens_per_block"]
    assert grid.sink_tokens == row["cond_tokens"]["total"]
    assert list(ring.k[0].shape) == row["k_shape_per_layer"]
    assert nbytes(ring.v[0]) == expected["k_or_v_one_layer"]
    assert nbytes(ring.k[0], ring.v[0]) == expected["kv_one_layer"]
    assert nbytes(ring.k, ring.v) == expected["kv_one_step_40_layers"]
    assert sum(nbytes(r.k, r.v) for r in caches.rings) == expected["kv_4_steps"]
    assert nbytes(sink.k, sink.v) == expected["cond_actually_used_40_layers"]
    scratch = nbytes(caches.scratch.k, caches.scratch.v)
    assert scratch == expected["kv_one_layer"] + expected["cond_actually_used_40_layers"] // 40
    assert caches.nbytes == expected["kv_4_steps"] + expected["cond_actually_used_40_layers"] + scratch


def test_a_large_picture_has_a_larger_sink_than_the_reference_could_hold() -> None:
    grid = Grid(480 // 8, 832 // 8)
    assert grid.frame_tokens == 30 * 52
    assert grid.sink_tokens == 1560 + 1560 + 15 * 26 + 4 * 7 * 13 == 3874
    caches = caches_of(grid)
    assert nbytes(caches.sink.k, caches.sink.v) == 2 * 2 * 40 * 3874 * 5120
    assert nbytes(caches.rings[0].k) == 2 * 40 * 12 * 1560 * 5120
