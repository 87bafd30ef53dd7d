"""What experiments on whole runs share: members side by side, a table, a figure, and what it was measured on.

A question is a sweep: `python -m experiments.steps.run` runs every member in a process of its own and leaves, in its
folder, results.csv, table.md (for the README) and figures, all from what the runs have measured.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from liveavatar.report import report
from liveavatar.sweep import sweep

log = logging.getLogger("experiments")


def options(about: str, seconds: float) -> argparse.ArgumentParser:
    """The words that every such experiment understands."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where results.csv, table.md and figures go; else they are said only")
    parser.add_argument("--seconds", type=float, default=seconds, help="length of each video")
    parser.add_argument("--weights", type=Path, help="an export/ folder; what ships with the package otherwise")
    parser.add_argument("--quality", help="the metric of metrics.json to colour by; the first of quality/* otherwise")
    parser.add_argument("--keep", type=Path, help="a folder for the runs themselves; a cut sweep goes on there")
    parser.add_argument("words", nargs="*", help="further words for liveavatar.infer, such as model=micro")
    return parser


def answer(given: argparse.Namespace, varied: Sequence[str], figures: Sequence[str]) -> int:
    """Run every combination of `varied`, and write what came of it; returns the number of runs that failed."""
    words = [*varied, f"request.max_seconds={given.seconds}", "fabric.threads=1", *given.words]
    if given.weights:
        words += ["weights=bundle", f"weights.dir={given.weights.resolve()}"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        ended = sweep([*words, f"output.dir={folder}", "output.resume=true"])
        page = report(folder, quality=given.quality)
        if given.out:
            given.out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page.with_name("report.csv"), given.out / "results.csv")
            shutil.copyfile(page.with_name("report.md"), given.out / "table.md")
            for stem in figures:
                if (drawn := page.with_name(f"{stem}.png")).exists():
                    shutil.copyfile(drawn, given.out / f"{stem}.png")
        log.info("%s", page.with_name("report.md").read_text(encoding="utf-8"))
    return sum(member.status == "failed" for member in ended)
