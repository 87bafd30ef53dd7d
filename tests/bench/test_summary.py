"""From outcomes to tables: ratios of one repeat, counts that must hold, words for what did not run, comparison."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from liveavatar.benching.compare import differences, previous
from liveavatar.benching.conduct import Turn
from liveavatar.benching.figure import draw
from liveavatar.benching.rows import Row, cpu_rows, gpu_rows
from liveavatar.benching.summary import compared, interval, summarise
from liveavatar.benching.table import COLUMNS, GROUPS, NOT_MEASURED, markdown, write

ROWS = {row.name: row for row in cpu_rows()}
ABOUT = {"command": "python -m liveavatar.bench", "date": "today", "run/cpu": "a CPU", "seed": 0, "repeats": 2}


def ok(**found: Any) -> dict[str, Any]:
    return {"status": "ok", "reason": "", "found": found}


def some(*names: str) -> list[Row]:
    return [ROWS[name] for name in names]


def test_a_ratio_is_taken_within_a_repeat(tmp_path: Path) -> None:
    rows = some("weights.resident", "weights.accelerate")
    outcomes = {
        ("weights.resident", 0): ok(s_per_cell=1.0),
        ("weights.resident", 1): ok(s_per_cell=10.0),  # the machine was slower then, for all
        ("weights.accelerate", 0): ok(s_per_cell=3.0),
        ("weights.accelerate", 1): ok(s_per_cell=30.0),
    }
    truth, peer = summarise(rows, outcomes, {}, tmp_path)
    assert peer["x_over"] == peer["x_low"] == peer["x_high"] == 3.0
    assert peer["x_interval"] == "3.00 to 3.00"
    assert peer["s_per_cell"] == 16.5
    assert peer["fps"] == pytest.approx(12 / (4 * 16.5))
    assert "x_over" not in truth


def test_the_interval_holds_the_median() -> None:
    low, high = interval([1.0, 1.1, 1.2, 1.3, 9.0])
    assert 1.0 <= low <= 1.2 <= high <= 9.0
    assert low < high
    assert interval([2.0]) == (2.0, 2.0)
    assert interval([1.0, 2.0, 3.0]) == interval([1.0, 2.0, 3.0])


def test_latents_are_compared_as_far_as_both_go(tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    folder.mkdir()
    rows = some("full.resident", "full.stream_k4")
    long, short = torch.arange(6.0).reshape(3, 2), torch.arange(4.0).reshape(2, 2)
    paths = [folder / f"{Turn(row, 0).stem}.safetensors" for row in rows]
    save_file({"latents": long}, str(paths[0]))
    save_file({"latents": short}, str(paths[1]))
    assert compared(paths[1], paths[0]) == (True, 0.0)
    short[1, 1] += 0.25
    save_file({"latents": short}, str(paths[1]))
    outcomes = {(row.name, 0): ok(s_per_cell=1.0) for row in rows}
    ours = summarise(rows, outcomes, {}, tmp_path)[1]
    assert (ours["bitwise"], ours["max_diff"]) == (False, 0.25)
    assert "x_over" not in ours  # its seconds were not repeated: only counts are read


def test_a_count_that_varies_is_a_failure(tmp_path: Path) -> None:
    outcomes = {("weights.accelerate", n): ok(s_per_cell=1.0, fetches_per_cell=float(5 + n)) for n in range(2)}
    found = summarise(some("weights.accelerate"), outcomes, {}, tmp_path)[0]
    assert found["status"] == "failed"
    assert "fetches_per_cell" in found["reason"]


def test_stages_are_composed_by_the_slowest_and_labelled(tmp_path: Path) -> None:
    names = [f"full.diagonal_stage{stage}" for stage in range(4)]
    outcomes = {(name, 0): ok(s_per_cell=0.1 * (1 + n), layers=3) for n, name in enumerate(names)}
    whole = summarise(some(*names), outcomes, {}, tmp_path)[-1]
    assert whole["row"] == "full.diagonal_x4_composed"
    assert "COMPOSED" in whole["about"]
    assert whole["s_per_cell"] == pytest.approx(0.4)
    assert whole["fps"] == pytest.approx(12 / (4 * 0.4))
    outcomes["full.diagonal_stage2", 0] = {"status": "oom", "reason": "load: no room", "found": {}}
    assert len(summarise(some(*names), outcomes, {}, tmp_path)) == 4


def test_rows_without_a_result_say_why(tmp_path: Path) -> None:
    rows = some("weights.resident", "weights.accelerate", "weights.diffusers_leaf", "weights.stream_k4")
    outcomes = {
        ("weights.resident", 0): ok(s_per_cell=1.0),
        ("weights.accelerate", 0): {"status": "oom", "reason": "load: CUDA out of memory", "found": {}},
        ("weights.stream_k4", 0): {"status": "failed", "reason": "the process ended by signal 9", "found": {}},
    }
    found = summarise(rows, outcomes, {"weights.diffusers_leaf": "needs diffusers"}, tmp_path)
    assert [row["status"] for row in found] == ["ok", "oom", "skipped", "failed"]
    text = markdown(found, ABOUT)
    assert "**out of memory** (load: CUDA out of memory)" in text
    assert "**failed** (the process ended by signal 9)" in text
    assert "- needs diffusers: weights.diffusers_leaf" in text
    assert NOT_MEASURED in text


def test_tables_hold_what_was_measured_and_what_was_predicted(tmp_path: Path) -> None:
    names = ("machine", "full.resident@704x384", "full.stream_k4+ring@704x384,24g")
    rows = [row for row in gpu_rows() if row.name in names]
    outcomes = {
        ("machine", 0): ok(h2d_gbs=50.0, d2h_gbs=48.0, both_gbs=80.0, bfloat16_tflops=600.0),
        ("full.resident@704x384", 0): ok(
            s_per_cell=0.3, peak_allocated_bytes=8e10, context_bytes=6e8, card_bytes=15e10
        ),
        ("full.stream_k4+ring@704x384,24g", 0): ok(
            s_per_cell=0.32, card_peak_bytes=25.0e9, h2d_per_cell=8e9, stall_s_per_cell=0.01, gbs=49.0, alloc_retries=0
        ),
    }
    found = {row["row"]: row for row in summarise(rows, outcomes, {}, tmp_path)}
    streamed = found["full.stream_k4+ring@704x384,24g"]
    assert streamed["x_over"] == pytest.approx(0.32 / 0.3)
    assert 4e9 < streamed["predicted_peak_bytes"] < 7e9
    assert streamed["predicted_bound"] in ("compute", "host link")
    assert 0.1 < streamed["predicted_s_per_cell"] < 1
    off = streamed["predicted_s_per_cell"] / 0.32 - 1
    assert streamed["prediction_off"] == pytest.approx(off)
    truth = found["full.resident@704x384"]
    # 123 TFLOP of a cell, less what hoisting takes out of it, at the rate that was measured
    assert truth["over_floor"] == pytest.approx(0.3 / (121.3e12 / 600e12), rel=0.03)
    assert 70e9 < truth["predicted_peak_bytes"] < 85e9
    write(tmp_path, list(found.values()), ABOUT, ["a note"])
    text = (tmp_path / "table.md").read_text()
    for title in ("predicted s / cell", "predicted peak MB", "H2D / cell MB", "card MB", "× resident", "a note"):
        assert title in text
    told = json.loads((tmp_path / "results.json").read_text())
    assert [row["row"] for row in told["rows"]] == [row.name for row in rows]
    with (tmp_path / "results.csv").open() as file:
        line = next(row for row in csv.DictReader(file) if row["row"] == streamed["row"])
    assert float(line["h2d_per_cell"]) == 8e9
    assert line["status"] == "ok"


def test_a_card_that_held_more_than_the_cap_is_no_result(tmp_path: Path) -> None:
    row = next(row for row in gpu_rows() if row.name == "full.stream_k4+ring@704x384,24g")
    for most, status in ((25.0 * 2**30, "failed"), (23.9 * 2**30, "ok")):
        outcomes = {(row.name, 0): ok(s_per_cell=1.0, card_peak_bytes=most, over_cap=most > 24 * 2**30)}
        found = summarise([row], outcomes, {}, tmp_path)[0]
        assert found["status"] == status
    assert found["reason"] == ""


def test_decoding_is_told_in_layers_of_the_same_card(tmp_path: Path) -> None:
    rows = [row for row in gpu_rows() if row.name in ("vae@704x384", "full.resident@704x384")]
    outcomes = {("vae@704x384", 0): ok(decode_s=0.24), ("full.resident@704x384", 0): ok(s_per_cell=0.3)}
    found = {row["row"]: row for row in summarise(rows, outcomes, {}, tmp_path)}
    assert found["vae@704x384"]["decode_layers"] == pytest.approx(0.24 / (4 * 0.3 / 40))


def test_every_group_of_rows_has_a_table() -> None:
    for row in (*cpu_rows(), *cpu_rows(short=True), *gpu_rows(), *gpu_rows("cpu", "tiny", "float32", True)):
        assert row.group in GROUPS
        assert row.group in COLUMNS


def test_counts_must_hold_and_ratios_may_not_get_much_worse(tmp_path: Path) -> None:
    kept = tmp_path / "results.json"
    before = [
        {"row": "a", "status": "ok", "fetches_per_cell": 4.0, "x_over": 2.0, "s_per_cell": 1.0},
        {"row": "b", "status": "oom"},
        {"row": "gone", "status": "ok", "fetches_per_cell": 1.0},
    ]
    kept.write_text(json.dumps({"rows": before}))
    same = [before[0] | {"s_per_cell": 100.0, "x_over": 2.5}, {"row": "b", "status": "ok", "fetches_per_cell": 3.0}]
    assert differences(kept, same, 0.3, ratios=True) == ([], 2)
    worse = [before[0] | {"x_over": 2.7}]
    assert len(differences(kept, worse, 0.3, ratios=True)[0]) == 1
    assert differences(kept, worse, 0.3, ratios=False) == ([], 1)
    assert differences(kept, [before[0] | {"x_over": 0.5}], 0.0, ratios=True)[0] == []
    (told,), _ = differences(kept, [before[0] | {"fetches_per_cell": 5.0}], 0.3, ratios=True)
    assert told == "a: fetches_per_cell was 4.0 and is 5.0"


def test_a_table_to_compare_with_must_be_one(tmp_path: Path) -> None:
    assert previous(None, "cpu", False) is None
    with pytest.raises(ValueError, match=r"compare\.previous=.* is no file"):
        previous(str(tmp_path / "nothing.json"), "cpu", False)
    other = tmp_path / "other.json"
    for text in ("{}", "[1]", "no json"):
        other.write_text(text)
        with pytest.raises(ValueError, match=r"is no results\.json"):
            differences(other, [], 0.3, ratios=True)


def test_the_figure_shows_rows_with_seconds_and_memory(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        {"row": "weights.resident", "group": "weights", "status": "ok", "s_per_cell": 1.0, "fps": 3.0},
        {"row": "weights.accelerate", "group": "weights", "status": "ok", "s_per_cell": 2.0, "fps": 1.5},
        {"row": "full.resident", "group": "full", "status": "oom"},
    ]
    assert "no row" in draw(tmp_path / "figure.png", rows, "nothing yet")
    for row in rows[:2]:
        row |= {"weights_device_bytes": 1e6, "caches_device_bytes": 0}
    assert draw(tmp_path / "figure.png", rows, "title") == ""
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
