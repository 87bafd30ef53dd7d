"""python -m liveavatar.plan: light, without torch, and with an answer for every strategy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.strategies.launch import clean_environment

_PLAN = """
import atexit, runpy, sys
def told():
    heavy = [name for name in ("torch", "lightning") if name in sys.modules]
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
    sys.stderr.write(f"told {peak} {' '.join(heavy)}\\n")
atexit.register(told)
sys.argv[0] = "liveavatar.plan"
runpy.run_module("liveavatar.plan", run_name="__main__", alter_sys=True)
"""


def _run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _PLAN, *arguments]
    return subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False)


KEYS = {"fits", "peak_gb", "parts", "host_gb", "seconds_per_12_frames", "bound_by", "command", "advice"}
"""What every strategy of the JSON document holds, whoever reads it."""


@pytest.fixture(scope="module")
def four_cards(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """What the command prints and writes for 4×24 GB."""
    return _planned(tmp_path_factory.mktemp("plan"), "topology=4x24gb")


def _planned(folder: Path, *overrides: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    done = _run("model=s2v_14b", "request.size=704*384", "output.json=plan.json", *overrides, folder=folder)
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == [folder / "plan.json"]
    return done, json.loads((folder / "plan.json").read_text())


def test_a_plan_is_light_and_needs_no_torch(
    four_cards: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    rss, *heavy = four_cards[0].stderr.split("told ")[1].split()
    assert heavy == []
    assert int(rss) < 300_000  # KiB


def test_the_document_and_the_table_tell_all_of_it(
    four_cards: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    done, told = four_cards
    assert told["command"] in done.stdout
    assert told["chosen"] in told["strategies"]
    assert told["strategies"][told["runner_up"]]["command"] in done.stdout
    for name, row in told["strategies"].items():
        assert row.keys() >= KEYS
        assert name in done.stdout
        assert row["parts"]
        assert row["seconds_per_12_frames"] > 0
        if row["fits"]:
            assert max(row["peak_gb"]) <= told["budget_gb"]
            assert row["command"]
        else:
            assert f"{row['excess_bytes']:,} bytes too many" in done.stdout
            assert row["advice"]
    assert all(len(told["strategies"][name]["peak_gb"]) == 4 for name in ("diagonal_pipeline", "fsdp_full"))


def test_four_small_cards(four_cards: tuple[subprocess.CompletedProcess[str], dict[str, Any]]) -> None:
    """The reference's wrapping needs a third more than a card has; a fourth of the layers fits, caches in host memory.

    A user who wants the diagonal pipeline is led to that setting: without it the rank that decodes is too full.
    """
    told = four_cards[1]["strategies"]
    assert not told["reference_tpp"]["fits"]
    assert 32 <= max(told["reference_tpp"]["peak_gb"]) <= 36
    diagonal = told["diagonal_pipeline"]
    assert diagonal["fits"]
    assert 20.5 <= max(diagonal["peak_gb"]) <= 22
    assert "+strategy=diagonal_pipeline fabric.devices=4 strategy.caches=host" in diagonal["command"]
    assert diagonal["host_gb"] == pytest.approx(41.5, rel=0.01)  # four caches of all layers


def test_one_small_card(tmp_path: Path) -> None:
    _, told = _planned(tmp_path, "topology=1x24gb")
    assert told["chosen"] == "fsdp_stream"
    row = told["strategies"]["fsdp_stream"]
    assert "+strategy=fsdp_stream strategy.source=host strategy.caches=host" in row["command"]
    assert max(row["peak_gb"]) <= told["budget_gb"]
    assert row["host_gb"] > 41.5


def test_mistakes_are_told_without_a_traceback(tmp_path: Path) -> None:
    for argument, told in (
        ("request.size=10*10", "nearest is request.size=64*64"),
        ("topology=9x9gb", "topology/9x9gb"),
        ("topology.devices=99", "topology.devices=99"),
    ):
        done = _run(argument, folder=tmp_path)
        assert done.returncode == 2
        assert told in done.stderr
        assert "Traceback" not in done.stderr
