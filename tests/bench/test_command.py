"""The command: what it refuses, what it leaves behind, how it goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from liveavatar.bench import bench
from liveavatar.benching.abouts import ABOUTS
from liveavatar.benching.rows import Row, chosen, cpu_rows, gpu_rows
from liveavatar.benching.summary import COUNTS
from liveavatar.config import compose

FEW = "only=[weights.resident,weights.stream_k4]"


def asked(*words: str) -> dict[str, Any]:
    return bench(compose("bench", words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["suite=tpu"], "suite=tpu is unknown: write suite=cpu"),
        (["device=tpu"], "device=tpu is unknown"),
        (["device=cuda"], "suite=cpu measures on device=cpu"),
        (["shape=huge"], "shape=huge is unknown: write 14b, small, tiny"),
        (["suite=gpu", "dtype=int4"], "dtype=int4 is unknown"),
        (["dtype=bfloat16"], "leave dtype out"),
        (["threads=0"], "threads=0 must be at least 1"),
        (["repeats=0"], "repeats=0 must be at least 1"),
        (["budget_s=0"], "budget_s=0 above 0"),
        (["compare.tolerance=-1"], r"compare\.tolerance=-1 cannot be negative"),
        (["compare.previous=nowhere.json"], r"compare\.previous=nowhere\.json is no file"),
        (["only=[weights.teleport]"], r"only=weights\.teleport names no row .* weights\.accelerate"),
        (["only=[full.resident,nothing.*]"], r"only=nothing\.\* names no row"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(words: list[str], message: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=message):
        asked(*words, f"output.dir={out}")
    assert not out.exists()


def test_rows_have_one_name_each_and_stand_beside_rows_that_there_are() -> None:
    suites = [cpu_rows(), cpu_rows(short=True), gpu_rows(), gpu_rows(short=True), gpu_rows("cpu", "small", "float32")]
    for rows in suites:
        names = [row.name for row in rows]
        assert len(set(names)) == len(names)
        for row in rows:
            assert row.against is None or row.against in names
            if row.job["kind"] == "stream":
                assert row.job["way"] in ABOUTS
    assert len(cpu_rows(short=True)) <= 10


def test_rows_are_chosen_by_name_or_pattern() -> None:
    rows = cpu_rows()
    assert [row.name for row in chosen(rows, ["cell.*", "start"])] == ["cell.float32", "cell.bfloat16", "start"]
    assert chosen(rows, None) == rows


def test_a_row_names_what_it_lacks() -> None:
    row = Row("a", "full", {}, needs=("json", "teleporter", "replicator"))
    assert row.lacks("cpu") == "needs teleporter and replicator: pip install teleporter replicator"
    assert Row("a", "full", {}, cuda=True).lacks("cpu") == "needs a CUDA device"
    assert Row("a", "full", {}, cuda=True, needs=("json",)).lacks("cuda") == ""


def test_without_a_card_its_suite_says_what_it_skipped(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a card")
    told = asked("suite=gpu", f"output.dir={tmp_path}", "compare.previous=null")
    assert {row["status"] for row in told["rows"]} == {"skipped"}
    assert told["failed"] == told["undone"] == []
    text = (tmp_path / "table.md").read_text()
    assert "needs a CUDA device, and PyTorch sees none: machine" in text
    assert "not measured yet" in text
    assert "predicted s / cell" in text  # what the planner says stands there all the same


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Two rows as a user would measure them."""
    out = tmp_path_factory.mktemp("bench") / "out"
    words = ["short=true", FEW, f"output.dir={out}", "compare.previous=null"]
    command = [sys.executable, "-m", "liveavatar.bench", *words]
    return out, subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_bench_leaves_tables_and_every_outcome(measured: tuple[Path, Any]) -> None:
    out, done = measured
    assert done.returncode == 0, done.stderr
    assert "weights.stream_k4, repeat 1: ok" in (out / "run.log").read_text()
    assert "1/2" in done.stderr
    assert "| weights.stream_k4 |" in done.stdout
    assert done.stdout == (out / "table.md").read_text()
    assert {path.name for path in out.iterdir()} >= {"results.json", "results.csv", "settings.json", "rows", "latents"}
    told = json.loads((out / "results.json").read_text())
    truth, ours = told["rows"]
    assert ours["bitwise"] is True
    assert ours["x_over"] == pytest.approx(ours["s_per_cell"] / truth["s_per_cell"])
    assert 0 < ours["weights_device_bytes"] < truth["weights_device_bytes"]
    assert told["about"]["run/torch"]
    assert told["about"]["load"] >= 0
    assert told["about"]["command"].startswith("python -m liveavatar.bench short=true")


def test_resuming_measures_nothing_twice_and_compares(measured: tuple[Path, Any], tmp_path: Path) -> None:
    out, _ = measured
    outcomes = {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    before = tmp_path / "before.json"
    before.write_text((out / "results.json").read_text())
    again = ("short=true", FEW, f"output.dir={out}", "resume=true", f"compare.previous={before}")
    told = asked(*again)
    assert {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()} == outcomes
    assert told["differences"] == told["undone"] == told["failed"] == []
    kept = json.loads(before.read_text())
    counted = [name for name in COUNTS if name in kept["rows"][1]]
    assert "weights_in_per_cell" in counted
    kept["rows"][1]["weights_in_per_cell"] += 1
    before.write_text(json.dumps(kept))
    (changed,) = asked(*again)["differences"]
    assert changed.startswith("weights.stream_k4: weights_in_per_cell was")
    assert changed in (out / "table.md").read_text()


def test_a_folder_holds_one_kind_of_bench(measured: tuple[Path, Any]) -> None:
    out, _ = measured
    with pytest.raises(ValueError, match="holds results already: write resume=true"):
        asked("short=true", FEW, f"output.dir={out}")
    with pytest.raises(ValueError, match=r"seed=0 \(now 7\): name another folder"):
        asked("short=true", FEW, f"output.dir={out}", "seed=7", "resume=true")
    with pytest.raises(ValueError, match=r"short=True \(now False\), shape=tiny \(now small\)"):
        asked(FEW, f"output.dir={out}", "resume=true")


def test_help_and_mistakes_come_at_once() -> None:
    def told(*words: str) -> subprocess.CompletedProcess[str]:
        code = "import atexit, runpy, sys; "
        code += "atexit.register(lambda: sys.stderr.write(' '.join({'torch', 'lightning'} & set(sys.modules)))); "
        code += "runpy.run_module('liveavatar.bench', run_name='__main__', alter_sys=True)"
        return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)

    helped = told("--help")
    assert helped.returncode == 0
    assert helped.stderr == ""
    for words in ("suite: cpu", "budget_s", "exit codes"):
        assert words in helped.stdout
    mistaken = told("suite=tpu")
    assert mistaken.returncode == 2
    assert mistaken.stderr == "liveavatar: suite=tpu is unknown: write suite=cpu (runs everywhere) or suite=gpu\n"
