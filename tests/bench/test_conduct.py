"""Turns are shuffled and interleaved, run in processes of their own, kept one by one; a broken one stops no other."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from liveavatar.benching import conduct
from liveavatar.benching.conduct import Conductor, turns
from liveavatar.benching.rows import Row
from tests.bench.jobs import JOB, run_worker

PRETENDER = """
import json, os, signal, sys, time
job, result = json.load(open(sys.argv[1])), sys.argv[2]
with open(job["diary"], "a") as diary:
    diary.write(job["name"] + os.environ["RANK"] + "/" + os.environ["WORLD_SIZE"] + "\\n")
if job["name"] == "raises":
    raise ValueError("no such luck")
if job["name"] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if job["name"] == "sleeps":
    time.sleep(600)
if job["name"] == "half" and os.environ["RANK"] == "1":
    sys.exit("rank 1 had enough")
if job["name"] == "half":
    time.sleep(600)
status = "oom" if job["name"] == "full" else "ok"
if os.environ["RANK"] == "0":
    json.dump({"status": status, "reason": "", "found": {"threads": job["threads"]}}, open(result, "w"))
"""


def row(name: str, diary: Path, **more: Any) -> Row:
    ranks = more.pop("ranks", 1)
    return Row(name, "around", {"kind": "pretend", "name": name, "diary": str(diary), "ranks": ranks}, **more)


@pytest.fixture
def conductor(tmp_path: Path) -> Conductor:
    script = tmp_path / "pretender.py"
    script.write_text(PRETENDER)
    return Conductor(tmp_path, threads=2, worker=(str(script),))


def test_repeats_are_interleaved_and_each_has_an_order_of_its_own(tmp_path: Path) -> None:
    rows = [row(name, tmp_path) for name in "abcdefgh"] + [row("once", tmp_path, repeats=1)]
    found = turns(rows, 3, seed=5)
    assert [turn.repeat for turn in found] == [0] * 9 + [1] * 8 + [2] * 8
    orders = [[turn.row.name for turn in found if turn.repeat == repeat] for repeat in range(3)]
    assert sorted(orders[0]) == sorted([*"abcdefgh", "once"])
    assert len({tuple(name for name in order if name != "once") for order in orders}) == 3
    assert found == turns(rows, 3, seed=5)
    assert found != turns(rows, 3, seed=6)


def test_what_breaks_is_told_and_stops_no_other(conductor: Conductor, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    rows = [
        row("fine", diary),
        row("raises", diary),
        row("killed", diary),
        row("sleeps", diary, timeout_s=0.5),
        row("half", diary, ranks=2, timeout_s=60.0),
        row("full", diary),
        row("pair", diary, ranks=2),
    ]
    began = time.monotonic()
    told = {turn.row.name: outcome for turn, outcome in conductor.play(turns(rows, 1, 0))}
    assert {name: outcome["status"] for name, outcome in told.items() if outcome is not None} == {
        "fine": "ok",
        "raises": "failed",
        "killed": "failed",
        "sleeps": "failed",
        "half": "failed",
        "full": "oom",
        "pair": "ok",
    }
    reasons = {name: outcome["reason"] for name, outcome in told.items() if outcome is not None}
    assert "exit code 1" in reasons["raises"]
    assert "no such luck" in reasons["raises"]
    assert "by signal 9" in reasons["killed"]
    assert "did not end within 0.5 s" in reasons["sleeps"]
    assert "rank 1 had enough" in reasons["half"]
    assert time.monotonic() - began < 300  # nobody waited for the sleepers
    assert {"pair0/2", "pair1/2"} <= set(diary.read_text().split())
    assert told["fine"] is not None
    assert told["fine"]["found"] == {"threads": 2}


def test_resuming_runs_what_failed_and_nothing_else(conductor: Conductor, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    due = turns([row("fine", diary), row("full", diary), row("raises", diary)], 2, 0)
    list(conductor.play(due))
    assert sorted(diary.read_text().split()) == sorted(["fine0/1", "full0/1", "raises0/1"] * 2)
    diary.write_text("")
    again = [(turn.row.name, outcome) for turn, outcome in conductor.play(due)]
    assert diary.read_text().split() == ["raises0/1"] * 2
    assert [name for name, _ in again] == [turn.row.name for turn in due]
    (tmp_path / "rows" / "fine.0.json").write_text('{"status"')  # half a file is no result
    diary.write_text("")
    list(conductor.play(due))
    assert sorted(diary.read_text().split()) == ["fine0/1", "raises0/1", "raises0/1"]


def test_a_budget_leaves_the_rest_for_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, diary = tmp_path / "pretender.py", tmp_path / "diary"
    script.write_text(PRETENDER)
    now = [0.0]
    monkeypatch.setattr(conduct.time, "monotonic", lambda: now[0])
    due = turns([row(name, diary) for name in ("a", "b", "c")], 1, 0)
    told = []
    for turn, outcome in Conductor(tmp_path, 1, budget_s=10, worker=(str(script),)).play(due):
        told.append((turn.row.name, outcome is None))
        now[0] += 7
    assert [left for _, left in told] == [False, False, True]
    now[0] = 100.0
    finished = [outcome for _, outcome in Conductor(tmp_path, 1, budget_s=10, worker=(str(script),)).play(due)]
    assert all(outcome is not None for outcome in finished)
    assert len(diary.read_text().split()) == 3


def test_leaving_ends_what_still_runs(conductor: Conductor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(timeout_s: float) -> bool:
        while not (tmp_path / "diary").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(conductor, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt), conductor:
        list(conductor.play(turns([row("sleeps", tmp_path / "diary")], 1, 0)))
    assert all(process.returncode is not None for process in conductor._running)
    assert not list((tmp_path / "rows").glob("*.json"))


def test_running_out_of_memory_is_a_result(tmp_path: Path) -> None:
    """The real worker, under a cap that leaves room for a process and none for the model."""
    job = JOB | {"shape": "14b", "size": "704*384", "dtype": "bfloat16", "cap_gib": 0.1}
    told, result = tmp_path / "job.json", tmp_path / "result.json"
    told.write_text(json.dumps(job))
    done = run_worker(told, result)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(result.read_text())
    assert outcome["status"] == "oom", outcome
    assert outcome["reason"].startswith("load: ")
