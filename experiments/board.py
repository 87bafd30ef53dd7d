"""What experiments on whole runs share: members side by side, a table, a figure, and what it was measured on.

A question is a sweep: `python -m experiments.steps.run` runs every member in a process of its own and leaves, in its
folder, results.csv, table.md (for the README) and a figure, all from what the runs have measured. Costs are compared in
one process, a piece of each member in turn (`experiments.paired`).
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.paired import side_by_side
from liveavatar.config import compose
from liveavatar.evaluate import score
from liveavatar.report import gather, report
from liveavatar.report.gather import Row
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


def answer(given: argparse.Namespace, varied: Sequence[str], shown: Mapping[str, str], against: str | None) -> int:
    """Run every combination of `varied`, and write what came of it; returns the number of runs that failed.

    `shown` are the columns of the table: metrics by key, with their words. The videos are compared with that of the
    member `against` (a part of its name), which is trusted.
    """
    words = ["metrics=toon", *varied, f"request.max_seconds={given.seconds}", "fabric.threads=1", *given.words]
    if given.weights:
        words += ["weights=bundle", f"weights.dir={given.weights.resolve()}"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        ended = sweep([*words, f"output.dir={folder}", "output.resume=true"])
        if against is not None:
            compare(folder, against)
            for name, costs in side_by_side(folder).items():
                _add(folder / name / "metrics.json", costs)
        page = report(folder, quality=given.quality)
        text = table(folder, shown)
        if given.out:
            given.out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page.with_name("report.csv"), given.out / "results.csv")
            (given.out / "table.md").write_text(text + "\n", encoding="utf-8")
            draw(folder, shown, given.out / "figure.png")
            if against is None:
                shutil.copyfile(page.with_name("drift.png"), given.out / "drift.png")
        log.info("%s", text)
    return sum(member.status == "failed" for member in ended)


def table(folder: Path, shown: Mapping[str, str]) -> str:
    """The members in their order, with the metrics that answer the question."""
    lines = ["| run | " + " | ".join(shown.values()) + " |", "| --- |" + " ---: |" * len(shown)]
    for row in _rows(folder):
        cells = [_told(_value(row, key, words)) for key, words in shown.items()]
        lines.append(f"| {_label(row)} | " + " | ".join(cells) + " |")
    broken = gather(folder).broken
    lines += ["", "Left out:", ""] if broken else []
    lines += [f"- `{name}`: {reason.splitlines()[0] if reason else ''}" for name, reason in broken.items()]
    return "\n".join(lines)


def draw(folder: Path, shown: Mapping[str, str], path: Path) -> None:
    """A bar for each member and metric."""
    from matplotlib.figure import Figure

    rows, columns = _rows(folder), min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(3.6 * columns + 1.2, (0.36 * len(rows) + 0.9) * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for number, (panel, (key, words)) in enumerate(zip(panels, shown.items(), strict=False)):
        values = [_value(row, key, words) for row in rows]
        panel.barh(range(len(rows)), [value or 0 for value in values], color="#4477aa", height=0.62)
        for place, value in enumerate(values):
            panel.text(value or 0, place, f" {_told(value)}", va="center", fontsize=8, color="#1c2430")
        panel.set_yticks(range(len(rows)), [_label(row) for row in rows] if number % columns == 0 else [""] * len(rows))
        panel.invert_yaxis()
        panel.margins(x=0.22)
        panel.set_title(words, fontsize=9, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    for panel in panels[len(shown) :]:
        panel.axis("off")
    figure.savefig(path, dpi=130)


def _label(row: Row) -> str:
    """What was asked for, as a member's folder says it: 1-sampler.steps=2 is steps=2."""
    key, sign, value = row.name.partition("-")[2].partition("=")
    return f"{key.rpartition('.')[2]}={value}" if sign else row.label


def _value(row: Row, key: str, words: str) -> float | None:
    value = row.number(key)
    return value / 1e6 if value is not None and words.endswith(", MB") else value


def _told(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _rows(folder: Path) -> list[Row]:
    """Finished members in the order in which they were asked for."""
    return sorted(gather(folder).rows, key=lambda row: row.name)


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
            _add(video.parent / name, {key: value for key, value in more.items() if key.startswith("reference/")})


def _add(file: Path, more: Mapping[str, Any]) -> None:
    held = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps(held | dict(more), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
