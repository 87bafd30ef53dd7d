"""What holds for the package as a whole: quick to import, quick to explain itself, layered, and quiet."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import command

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "liveavatar").rglob("*.py"))
HEAVY = ("torch", "lightning", "transformers", "diffusers", "av")
LONGEST = 300

_IMPORT = f"""
import sys, time
began = time.process_time()
import liveavatar
seconds = time.process_time() - began
heavy = [name for name in {(*HEAVY, "hydra", "omegaconf", "numpy")!r} if name in sys.modules]
print(seconds, *heavy)
"""

_HELP = f"""
import atexit, runpy, sys, time
began = time.process_time()
def told():
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    sys.stderr.write(f"told {{time.process_time() - began}} {{' '.join(heavy)}}\\n")
atexit.register(told)
sys.argv = ["liveavatar.infer", "--help"]
runpy.run_module("liveavatar.infer", run_name="__main__", alter_sys=True)
"""


def _best(code: str, folder: Path, mark: str = "") -> tuple[float, list[str], str]:
    """Fewest seconds of computing of three fresh interpreters, the heavy modules they loaded, and what they printed."""
    found = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
        line = next(line for line in (done.stderr if mark else done.stdout).splitlines() if line.startswith(mark))
        seconds, *heavy = line.removeprefix(mark).split()
        found.append((float(seconds), heavy, done.stdout))
    return min(found)


def test_importing_costs_next_to_nothing(tmp_path: Path) -> None:
    seconds, heavy, _ = _best(_IMPORT, tmp_path)
    assert heavy == []
    assert seconds < 0.2


def test_help_comes_at_once(tmp_path: Path) -> None:
    seconds, heavy, text = _best(_HELP, tmp_path, mark="told ")
    assert heavy == []
    assert seconds < 2
    strategies = sorted(file.stem for file in (ROOT / "conf" / "strategy").glob("*.yaml"))
    for words in (f"strategy: {', '.join(strategies)}", "request.image=", "frames_per_clip"):
        assert words in text
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_says_what_it_would_do(tmp_path: Path) -> None:
    arguments = ["+strategy=fsdp_stream", "--cfg", "job", "--resolve"]
    done = subprocess.run(command(*arguments), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "slots: 2" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_imports_point_downwards() -> None:
    pytest.importorskip("importlinter")
    # a process of its own: the linter sets up logging for itself, and switches off that of others
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_is_short_quiet_and_says_what_it_is_for(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    about = ast.get_docstring(tree) or ""
    assert about or not text.strip(), "a module begins by saying what it is for"
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert "print" not in calls
    if len(text.splitlines()) > LONGEST:
        assert "long because" in about, (
            f"over {LONGEST} lines: split it, or say in its docstring what it is long because of"
        )
