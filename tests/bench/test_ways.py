"""Every way does the same work: the bits of the resident run, and bytes that follow from sizes alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from liveavatar.benching.abouts import ABOUTS, PLANS
from liveavatar.benching.conduct import Turn
from liveavatar.benching.rows import Row, gpu_rows
from liveavatar.benching.sizes import keywords
from liveavatar.benching.summary import compared, summarise
from liveavatar.benching.table import markdown
from liveavatar.benching.ways import Pageable, Prefix
from liveavatar.memory.sizes import DitSizes, Picture
from liveavatar.strategies import sources
from liveavatar.strategies.stream import FsdpStream
from tests.bench.jobs import JOB

SIZES = DitSizes.of(keywords("tiny"))
PICTURE = Picture(64, 64)
EXACT = (
    "resident_plain", "stream_k1", "stream_k2", "stream_k4", "stream_k4_auto", "stream_k4_plain", "stream_k4_r3",
    "stream_k4_prefix_auto", "stream_k4_pageable", "accelerate", "accelerate_hook",
    "diffusers_leaf", "diffusers_block", "double_buffer",
    "fsdp2_reference", "fsdp2_units", "fsdp2_offload",
)  # fmt: skip
LOSSY = ("resident_fp8", "stream_k4_fp8")
AWAY = ("accelerate", "double_buffer", "diffusers_block", "stream_k4")
PARAMETERS = 4 * SIZES.params
ROW = 2 * SIZES.dim * 4
"""Bytes of a token's key and value in one layer."""


def _cases() -> dict[str, dict[str, Any]]:
    """What is run, by name."""
    found: dict[str, dict[str, Any]] = {}
    for way in ("resident", *EXACT):
        found[f"weights {way}"] = {"way": way, "workload": "weights", "kv": "none", "blocks": 2}
    for way in ("resident", *LOSSY, "stream_k1", "stream_k4"):
        found[f"full {way}"] = {"way": way}
    for way in AWAY:
        found[f"ring {way}"] = {"way": way, "kv": "host"}
    for way in AWAY[:2]:
        found[f"reference {way}"] = {"way": way, "kv": "reference"}
    for stage in range(4):
        found[f"stage {stage}"] = {"way": "diagonal_stage", "stage": stage, "dtype": "bfloat16"}
    found["profile"] = {"kind": "profile"}
    found["cell"] = {"kind": "cell", "times": 1}
    found["cut"] = {"kind": "cell", "times": 1, "layers": 2}
    found["nowhere"] = {"way": "teleport"}
    return found


CARD = (
    "full.resident", "full.resident,24g", "full.stream_k4_auto+ring,24g", "full.double_buffer+reference,24g",
    "full.diffusers_leaf+ring,24g", "full.fsdp2_offload+reference,24g", "machine",
    *(f"full.diagonal_stage{stage}" for stage in range(4)),
)  # fmt: skip
"""Rows of the card's suite that are played here without one."""


def _card_rows() -> list[Row]:
    rows = {row.name: row for row in gpu_rows("cpu", "tiny", "bfloat16", short=True)}
    return [rows[name] for name in CARD]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Outcomes by case; `latents` is where the blocks lie."""
    folder = tmp_path_factory.mktemp("ways")
    cases = {name: JOB | {"latents": str(folder / f"{name}.safetensors")} | more for name, more in _cases().items()}
    (folder / "latents").mkdir()
    for row in _card_rows():
        place = folder / "latents" / f"{Turn(row, 0).stem}.safetensors"
        cases[row.name] = row.job | {"threads": 1, "latents": str(place)}
    jobs, out = folder / "jobs.json", folder / "out.json"
    jobs.write_text(json.dumps(list(cases.values())))
    command = [sys.executable, "-m", "tests.bench.jobs", str(jobs), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(out.read_text())["outcomes"]
    return {name: one | {"latents": Path(cases[name]["latents"])} for name, one in zip(cases, outcomes, strict=True)}


def _found(ran: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    one = ran[name]
    assert one["status"] == "ok", one.get("trace", one)
    return one["found"]


@pytest.mark.parametrize("way", EXACT)
def test_every_way_gives_the_bits_of_the_resident_run(ran: dict[str, dict[str, Any]], way: str) -> None:
    assert _found(ran, f"weights {way}")["s_per_cell"] > 0
    assert compared(ran[f"weights {way}"]["latents"], ran["weights resident"]["latents"]) == (True, 0.0)


def test_caches_elsewhere_change_no_bit_and_caches_matter(ran: dict[str, dict[str, Any]]) -> None:
    truth = ran["full resident"]["latents"]
    for name in ("full stream_k1", "full stream_k4", *(f"ring {way}" for way in AWAY), "reference accelerate"):
        assert ran[name]["status"] == "ok", ran[name]
        assert compared(ran[name]["latents"], truth)[0], name
    assert not compared(ran["weights resident"]["latents"], truth)[0]


def test_what_is_lossy_is_near_and_not_the_same(ran: dict[str, dict[str, Any]]) -> None:
    for way in LOSSY:
        same, worst = compared(ran[f"full {way}"]["latents"], ran["full resident"]["latents"])
        assert not same
        assert 0 < worst < 1
    assert compared(ran["full resident_fp8"]["latents"], ran["full stream_k4_fp8"]["latents"])[0]


def test_peers_bring_in_every_weight_once_a_cell(ran: dict[str, dict[str, Any]]) -> None:
    for way in ("accelerate", "diffusers_block"):
        assert _found(ran, f"weights {way}")["weights_in_per_cell"] == PARAMETERS
    blocks = sum(SIZES.slab(f"blocks.{layer}", 4) for layer in range(SIZES.layers))
    buffered = _found(ran, "weights double_buffer")
    assert buffered["weights_in_per_cell"] == blocks
    rest = sum(SIZES.slab(name, 4) for name in SIZES.units if not name.startswith("blocks."))
    assert buffered["weights_device_bytes"] == rest + 2 * SIZES.slab("blocks.0", 4)
    largest = max(sum(sizes) for sizes in SIZES.units.values())
    assert _found(ran, "weights accelerate")["weights_device_bytes"] == 4 * largest
    leaves = _found(ran, "weights diffusers_leaf")
    assert 0 < leaves["weights_in_per_cell"] < PARAMETERS  # what is used without a call rests on the device
    assert leaves["weights_in_per_cell"] + leaves["weights_device_bytes"] > PARAMETERS


def test_a_model_that_comes_in_at_once_stays(ran: dict[str, dict[str, Any]]) -> None:
    found = _found(ran, "weights accelerate_hook")
    assert found["weights_in_per_cell"] == found["fetches_per_cell"] == 0  # it came before what is measured
    assert found["weights_device_bytes"] == PARAMETERS


def test_an_ablation_differs_from_ours_in_one_choice(ran: dict[str, dict[str, Any]]) -> None:
    assert Prefix(resident=2).settled(range(6)) == ["blocks.0", "blocks.1"]
    assert FsdpStream(resident=2).settled(range(6)) == ["blocks.1", "blocks.4"]
    ours = _found(ran, "weights stream_k4")
    for name, other in (("stream_k4_pageable", ours), ("stream_k4_prefix_auto", _found(ran, "weights stream_k4_auto"))):
        found = _found(ran, f"weights {name}")
        for column in ("weights_in_per_cell", "fetches_per_cell", "weights_device_bytes"):
            assert found[column] == other[column], (name, column)


def test_pageable_memory_is_asked_for_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def placed(self: FsdpStream, dit: object, source: object, dtype: object) -> None:
        room = sources.allocate(64, torch.device("cpu"), pinned=True)
        sources.pin(room)  # would need CUDA
        seen.append(room.nbytes)

    monkeypatch.setattr(FsdpStream, "place", placed)
    Pageable().place(None, None, torch.float32)  # type: ignore[arg-type]
    assert seen == [64]
    with pytest.raises((AssertionError, RuntimeError)):
        FsdpStream().place(None, None, torch.float32)  # type: ignore[arg-type]


def test_cells_in_flight_divide_what_comes_in(ran: dict[str, dict[str, Any]]) -> None:
    one, two, four = (_found(ran, f"weights stream_k{cells}") for cells in (1, 2, 4))
    plain = _found(ran, "weights stream_k4_plain")
    slabs = sum(SIZES.slab(name, 4) for name in SIZES.units)
    assert plain["weights_in_per_cell"] == slabs / 4
    assert plain["fetches_per_cell"] == len(SIZES.units) / 4
    assert four["weights_in_per_cell"] < two["weights_in_per_cell"] < one["weights_in_per_cell"] < PARAMETERS
    three = _found(ran, "weights stream_k4_r3")
    assert three["weights_in_per_cell"] == four["weights_in_per_cell"]
    assert three["weights_device_bytes"] == four["weights_device_bytes"] * 3 // 2
    assert _found(ran, "weights stream_k4_auto")["resident_blocks"] == SIZES.layers  # all fit, where there is no cap


def test_caches_move_as_their_design_says(ran: dict[str, dict[str, Any]]) -> None:
    ring = SIZES.layers * PICTURE.ring_tokens * ROW
    for way in AWAY:
        lent = _found(ran, f"ring {way}")
        assert (lent["caches_in_per_cell"], lent["caches_out_per_cell"]) == (ring * 9 / 12, ring * 3 / 12)
    for way in AWAY[:2]:
        moved = _found(ran, f"reference {way}")
        assert (moved["caches_in_per_cell"], moved["caches_out_per_cell"]) == (ring, ring)
        assert moved["caches_device_bytes"] > _found(ran, f"ring {way}")["caches_device_bytes"]
    resident = _found(ran, "full resident")
    assert resident["caches_device_bytes"] > 4 * ring
    assert _found(ran, "weights resident")["caches_device_bytes"] == 0


def test_a_stage_alone_pays_for_its_hop(ran: dict[str, dict[str, Any]]) -> None:
    stages = [_found(ran, f"stage {stage}") for stage in range(4)]
    assert sum(stage["layers"] for stage in stages) == SIZES.layers
    hidden = 2 * PICTURE.tokens * SIZES.dim
    # the first stage of the model only sends, the last only receives, those between do both
    told = sorted(stage["hidden_per_cell"] for stage in stages)
    assert told[0] == told[1] > hidden
    assert told[2] == told[3] == 2 * told[0]
    assert all(stage["s_per_cell"] > 0 for stage in stages)


def test_rows_of_the_card_come_down_to_the_table(ran: dict[str, dict[str, Any]]) -> None:
    rows, folder = _card_rows(), ran["full.resident"]["latents"].parent.parent
    summaries = summarise(rows, {(row.name, 0): ran[row.name] for row in rows}, {}, folder)
    told = {row["row"]: row for row in summaries}
    assert {row["status"] for row in summaries} == {"ok"}, summaries
    for name in CARD[1:6]:
        assert told[name]["bitwise"] is True
        assert told[name]["x_over"] > 0
    assert told["full.stream_k4_auto+ring,24g"]["resident_blocks"] == SIZES.layers
    assert told["full.diagonal_x4_composed"]["s_per_cell"] == max(told[name]["s_per_cell"] for name in CARD[-4:])
    text = markdown(summaries, {"command": "here"})
    for title in ("× resident", "caches in / cell MB", "hidden / cell MB", "blocks resident", "same bits"):
        assert f" {title} |" in text
    lines = [line for line in text.splitlines() if line.startswith("| full.")]
    assert len(lines) == len(CARD)  # all but the machine, and the composed one
    assert len({line.count("|") for line in lines}) == 1


def test_where_a_cell_spends_its_time_adds_up(ran: dict[str, dict[str, Any]]) -> None:
    shares = {name: value for name, value in _found(ran, "profile").items() if name.startswith("share_")}
    assert sum(shares.values()) == pytest.approx(1)
    assert all(shares[f"share_{part}"] > 0 for part in ("attention", "linear", "rotary", "modulation", "copies"))


def test_a_cell_is_set_beside_its_own_products(ran: dict[str, dict[str, Any]]) -> None:
    cell, cut = _found(ran, "cell"), _found(ran, "cut")
    assert cell["ratio"] == pytest.approx(cell["cell_s"] / cell["bare_s"])
    assert 0 < cut["products"] < cell["products"]


def test_the_machine_is_measured(ran: dict[str, dict[str, Any]]) -> None:
    found = _found(ran, "machine")
    assert found["host_copy_gbs"] > 0
    assert found["bfloat16_tflops"] > 0


def test_a_row_that_breaks_is_an_outcome(ran: dict[str, dict[str, Any]]) -> None:
    one = ran["nowhere"]
    assert one["status"] == "failed"
    assert "load" in one["reason"]
    assert "teleport" in one["reason"]


def test_a_bare_machine_needs_little(tmp_path: Path) -> None:
    """A rented card has PyTorch and little else: nothing beside it may be missed, except where a row says so."""
    jobs, out = tmp_path / "jobs.json", tmp_path / "out.json"
    told = [JOB | {"way": "stream_k4"}, JOB | {"way": "double_buffer"}, JOB | {"kind": "profile"}]
    jobs.write_text(json.dumps(told))
    absent = ("jaxtyping", "diffusers", "transformers", "accelerate", "torchaudio", "av", "soxr", "rich", "PIL")
    absent += ("matplotlib", "huggingface_hub", "sentencepiece", "ftfy", "peft", "torchao", "psutil", "wandb")
    command = [sys.executable, "-m", "tests.bench.jobs", str(jobs), str(out), *absent]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "weights.diffusers_leaf@704x384" in (tmp_path / "bare" / "table.md").read_text()
    found = json.loads(out.read_text())
    for one in found["outcomes"]:
        assert one["status"] == "ok", one
        assert one["stood_in"] == ["jaxtyping", "diffusers"]
    assert not (set(absent) - {"jaxtyping"}) & set(found["loaded"])
    assert set(found["kinds"]) == set(ABOUTS)
    assert set(PLANS) <= set(ABOUTS)
