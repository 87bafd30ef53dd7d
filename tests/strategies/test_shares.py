"""Ranks that share cells by sequence, or pictures by lines, give what one device gives, and hold their part of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, safe_open
from torch import Tensor

from liveavatar.models.dit.spread import chunks
from liveavatar.models.vae import stream_decode
from tests.goldens.case import Case
from tests.goldens.dit import _check_latents, settings_of
from tests.scene import latents_of, make_dit
from tests.strategies import share_worker
from tests.strategies.cases import BLOCKS
from tests.strategies.shares import GOLDENS, SHARES, SPLITS, TOO_FEW, ShareCase, SplitCase
from tests.strategies.topology_worker import DATA

Worked = Callable[[int], Path]

RUNS = [pytest.param(world, case, id=f"{world}_ranks-{case.name}") for world in SHARES for case in SHARES[world]]
PICTURES = [pytest.param(world, case, id=f"{world}_ranks-{case.name}") for world in SPLITS for case in SPLITS[world]]
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05}
"""Of latents; in bfloat16 sums in another order may round to a neighbouring number, and the stream goes on from it."""


@cache
def truth(heads: int, steps: int, actors: int, side: int, dtype: str) -> Tensor:
    """The same stream on a single device, block after block, step after step."""
    case = ShareCase("", 1, heads, steps, actors, side, dtype=dtype)
    return latents_of(case.rollout(make_dit(getattr(torch, dtype), **case.sizes)), BLOCKS)


@cache
def report(folder: Path, name: str, rank: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = folder / f"{name}-{rank}.safetensors"
    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()["about"])


def about_of(folder: Path, name: str, rank: int) -> dict[str, Any]:
    return report(folder, name, rank)[1]


@pytest.mark.parametrize(("world", "case"), RUNS)
def test_blocks_are_those_of_a_single_device_and_equal_on_all_ranks(
    worked: Worked, world: int, case: ShareCase
) -> None:
    expected = truth(*case.truth)
    first = report(worked(world), case.name, 0)[0]
    assert list(first) == [f"block_{number}" for number in range(BLOCKS)]
    for number, block in enumerate(first.values()):
        limit = 0 if case.degree == 1 else TOLERANCE[case.dtype]
        assert (block.float() - expected[number].float()).abs().max() <= limit, f"block {number}"
    for rank in range(1, world):
        other = report(worked(world), case.name, rank)[0]
        assert all(torch.equal(other[name], block) for name, block in first.items())


def test_the_truth_depends_on_what_the_cases_vary() -> None:
    kinds = sorted({case.truth for cases in SHARES.values() for case in cases})
    streams = [truth(*kind).float() for kind in kinds]
    assert all(stream.isfinite().all() and stream.std() > 0.1 for stream in streams)
    alike = [(a, b) for a in streams for b in streams if a is not b and a.shape == b.shape]
    assert all((a - b).abs().max() > 0.01 for a, b in alike)


@pytest.mark.parametrize(("world", "case"), RUNS)
def test_every_rank_holds_its_heads_of_the_caches(worked: Worked, world: int, case: ShareCase) -> None:
    whole = case.rollout(make_dit(getattr(torch, case.dtype), **case.sizes)).caches
    rings = sum(ring.k.nbytes + ring.v.nbytes for ring in whole.rings)
    for rank in range(world):
        about = about_of(worked(world), case.name, rank)
        assert about["rings"] * case.degree == rings
        if case.options.get("caches") == "host":
            assert about["caches"] * case.degree == whole.nbytes - rings + sum(t.nbytes for t in whole.scratch.tensors)
        else:
            assert about["caches"] * case.degree == whole.nbytes
        words = f"ranks compute by sequence, {case.degree} to a cell"
        assert (words in about["summary"]) == (case.degree > 1)
        assert ("groups that compute the same" in about["summary"]) == (1 < case.degree < world)


@pytest.mark.parametrize(("world", "case"), RUNS)
def test_bytes_are_those_of_tokens_and_heads_that_lie_elsewhere(worked: Worked, world: int, case: ShareCase) -> None:
    model = case.model()
    item, width, layers = getattr(torch, case.dtype).itemsize, model.dim, model.num_layers
    for rank in range(world):
        about = about_of(worked(world), case.name, rank)
        left = came = 0
        for tokens, passes in zip(about["tokens"], (BLOCKS * case.steps, 2), strict=True):
            part = chunks(tokens, case.degree)[rank % case.degree]
            own, share = part.stop - part.start, width // case.degree
            outward, inward = 3 * own * (width - share), 3 * (tokens - own) * share
            came += passes * layers * item * (inward + own * (width - share))
            left += passes * layers * item * (outward + (tokens - own) * share)
            if tokens == about["tokens"][0]:  # velocities, of 64 numbers a token
                came += passes * 4 * 64 * (tokens - own)
                left += passes * 4 * 64 * own * (case.degree - 1)
        assert (about["came"], about["left"]) == (came, left)
        if case.strategy == "replicated":
            assert (about["traffic"]["received"], about["traffic"]["sent"]) == (came, left)


@pytest.mark.parametrize(("world", "case"), RUNS)
def test_exchanges_make_no_room_in_steady_state(worked: Worked, world: int, case: ShareCase) -> None:
    for rank in range(world):
        grown = about_of(worked(world), case.name, rank)["grown"]
        assert grown == [grown[0]] * BLOCKS
        assert 2 * (case.degree > 1) <= grown[0] <= 8 * (case.degree > 1)


@pytest.mark.parametrize("name", GOLDENS)
def test_two_ranks_that_share_cells_meet_the_golden_streams(worked: Worked, name: str) -> None:
    for rank in range(2):
        case = Case(DATA / name)
        for run_name, blocks in load_file(worked(2) / f"{name}-shared-{rank}.safetensors").items():
            _check_latents(case, run_name, blocks, settings_of(case).blocks_per_clip)
        assert set(case.errors) == {stored for stored in case.names() if stored.startswith("latents")}
        assert not case.failures, case.failures


@pytest.mark.parametrize(("world", "case"), PICTURES)
def test_frames_are_those_of_the_whole_decoder(worked: Worked, world: int, case: SplitCase) -> None:
    codec, latents = share_worker.codec(case.dtype), share_worker.latents_of(case)
    with torch.no_grad():
        expected, _ = stream_decode(codec, latents)
    frames = report(worked(world), case.name, 0)[0]["frames"]
    assert frames.shape == expected.shape
    assert expected.std() > 0.02
    assert (frames - expected).abs().max() <= (1e-5 if case.dtype == "float32" else 1e-12)
    for rank in range(1, world):
        assert not report(worked(world), case.name, rank)[0], "only the first rank collects"


@pytest.mark.parametrize(("world", "case"), PICTURES)
def test_every_rank_decodes_and_remembers_its_lines_alone(worked: Worked, world: int, case: SplitCase) -> None:
    codec, latents = share_worker.codec(case.dtype), share_worker.latents_of(case)
    with torch.no_grad():
        _, state = stream_decode(codec, latents)
    for rank, run in enumerate(chunks(case.lines, world)):
        about, lines = about_of(worked(world), case.name, rank), run.stop - run.start
        assert about["state"] * case.lines == state.nbytes() * lines
        sides = [8 * lines, 8 * case.w] if case.h >= case.w else [8 * case.h, 8 * lines]
        assert [shape[-2:] for shape in about["shapes"]] == [sides] * len(case.pieces)
        assert about["moved"] == [True, True]
        assert about["grown"] == [about["grown"][0], *[about["grown"][1]] * 2]
        assert "share the decoding of each picture" in about["summary"]


def test_a_picture_with_fewer_lines_than_ranks_is_refused(worked: Worked) -> None:
    said = about_of(worked(5), SPLITS[5][0].name, 0)["refused"]
    assert "parallel.decode=split" in said
    assert f"3×2 latent pixels has {TOO_FEW.lines} lines to divide, fewer than 5 ranks" in said
    assert "parallel.decode=inline" in said
