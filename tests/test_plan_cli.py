"""python -m liveavatar.plan: quick, light, and with an answer for every strategy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.strategies.launch import clean_environment

_PLAN = """
import atexit, resource, runpy, sys
def told():
    used = resource.getrusage(resource.RUSAGE_SELF)
    heavy = [name for name in ("torch", "lightning") if name in sys.modules]
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
    sys.stderr.write(f"told {used.ru_utime + used.ru_stime} {peak} {' '.join(heavy)}\\n")
atexit.register(told)
sys.argv[0] = "liveavatar.plan"
runpy.run_module("liveavatar.plan", run_name="__main__", alter_sys=True)
"""


def _run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _PLAN, *arguments]
    return subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False)


def test_a_plan_is_quick_and_needs_no_torch(tmp_path: Path) -> None:
    done = _run("model=s2v_14b", "topology=4x24gb", "request.size=704*384", "output.json=plan.json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    seconds, rss, *heavy = done.stderr.split("told ")[1].split()
    assert heavy == []
    assert float(seconds) < 3
    assert int(rss) < 300_000  # KiB
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["command"] in done.stdout
    assert told["chosen"] in told["strategies"]
    for name, row in told["strategies"].items():
        assert name in done.stdout
        if row["fits"]:
            assert max(row["peak_gb"]) <= told["budget_gb"]
        else:
            assert f"{row['excess_bytes']:,} bytes too many" in done.stdout
            assert row["advice"]
    assert list(tmp_path.iterdir()) == [tmp_path / "plan.json"]


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
