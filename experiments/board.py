"""What experiments on whole runs share: members side by side, a table, a figure, and what it was measured on.

A question is a sweep: `python -m experiments.steps.run` runs every member in a process of its own and leaves, in its
folder, results.csv, table.md (for the README) and figures, all from what the runs have measured.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from liveavatar.config import compose
from liveavatar.evaluate import score
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


def answer(given: argparse.Namespace, varied: Sequence[str], figures: Sequence[str], against: str | None = None) -> int:
    """Run every combination of `varied`, and write what came of it; returns the number of runs that failed.

    The videos are compared with that of the member `against` (a part of its name), which is trusted.
    """
    words = ["metrics=toon", *varied, f"request.max_seconds={given.seconds}", "fabric.threads=1", *given.words]
    if given.weights:
        words += ["weights=bundle", f"weights.dir={given.weights.resolve()}"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        ended = sweep([*words, f"output.dir={folder}", "output.resume=true"])
        if against is not None:
            compare(folder, against)
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


def compare(folder: Path, against: str) -> None:
    """Add likeness to one member's video (`reference/*`) to the metrics of all members that have one."""
    videos = sorted(folder.glob("*/avatar.mp4"))
    trusted = next((video for video in videos if against in video.parent.name), None)
    if trusted is None:
        log.warning("no member %s has a video to compare with", against)
        return
    none = compose("evaluate", ["video=none", "metrics=none"]).metrics
    for video in videos:
        found, about = score(none, video, trusted)
        for name, more in (("metrics.json", found), ("about.json", about)):
            file = video.parent / name
            held = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            more = {key: value for key, value in more.items() if key.startswith("reference/")}
            file.write_text(json.dumps(held | more, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
