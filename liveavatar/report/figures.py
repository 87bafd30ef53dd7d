"""The figures of a report, each for a light and for a dark page. matplotlib comes with the extra `figures`."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from liveavatar.report.front import pareto
from liveavatar.report.gather import FPS, Gathered, Row, direction

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999", "#e69f00")
MARKS = "osD^vPX*"
EQUAL = ("reference/psnr", 100.0)
"""What equal videos have: no measure for the colours of the others."""
MOST_LINES = 12
MOST_LABELS = 10


@dataclass(frozen=True)
class Theme:
    """Colours of a page."""

    name: str
    back: str
    ink: str
    faint: str


LIGHT = Theme("light", "#ffffff", "#1c2430", "#d9dee5")
DARK = Theme("dark", "#161b22", "#e6e9ee", "#39424f")


@dataclass(frozen=True)
class Picture:
    """A figure: its file's stem, what it shows in a sentence, and PNG bytes for both themes."""

    stem: str
    caption: str
    light: bytes
    dark: bytes


def draw_all(found: Gathered, quality: str | None) -> list[Picture]:
    """Every figure for which the runs hold numbers. Raises ImportError without matplotlib."""
    pictures = []
    if any(row.peak and row.number(FPS) for row in found.rows):
        told = f", coloured by {quality}" if quality else "; no run has a metric of quality"
        caption = f"Peak memory against speed{told}. Ringed: the Pareto front, which no run beats in "
        caption += "all of these at once. Up and left is better."
        pictures.append(_both("front", caption, lambda axes, theme: _front(axes, theme, found.rows, quality)))
    if len({row.strategy for row in found.rows if row.peak and row.number(FPS)}) > 1:
        caption = "Each strategy: bars are medians over its runs, dots the runs themselves."
        pictures.append(_both("strategies", caption, lambda axes, theme: _bars(axes, theme, found.rows, quality), 3))
    if any(len(row.lines) > 1 for row in found.rows):
        caption = "Each run over its video: a line that leaves its level drifts. Contrast and luma in [0, 1]."
        pictures.append(_both("drift", caption, lambda axes, theme: _drift(axes, theme, found.rows), 3))
    return pictures


def _both(stem: str, caption: str, paint: Callable[[Any, Theme], None], panels: int = 1) -> Picture:
    return Picture(stem, caption, _png(paint, LIGHT, panels), _png(paint, DARK, panels))


def _png(paint: Callable[[Any, Theme], None], theme: Theme, panels: int) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.2 if panels == 1 else 4.2), layout="constrained", facecolor=theme.back)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels)
    for one in [axes] if panels == 1 else axes:
        one.set_facecolor(theme.back)
        one.tick_params(colors=theme.ink, labelsize=9)
        one.grid(color=theme.faint, lw=0.6)
        one.set_axisbelow(True)
        for side, spine in one.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(theme.faint)
    paint(axes, theme)
    for one in [axes] if panels == 1 else axes:
        for text in (one.xaxis.label, one.yaxis.label, one.title):
            text.set_color(theme.ink)
    data = io.BytesIO()
    figure.savefig(data, dpi=130, format="png", facecolor=theme.back)
    return data.getvalue()


def _front(axes: Any, theme: Theme, rows: Sequence[Row], quality: str | None) -> None:
    known = [row for row in rows if row.peak and row.number(FPS)]
    unit, word = _unit([row.peak or 0 for row in known])
    places = [((row.peak or 0) / unit, row.number(FPS) or 0.0) for row in known]
    best = pareto([worth(row, quality, rows) for row in known])
    marks = {name: MARKS[i % len(MARKS)] for i, name in enumerate(sorted({row.strategy for row in known}))}
    values = [row.number(quality) if quality else None for row in known]
    real = [value for value in values if value is not None]
    told = [value for value in real if not (quality == EQUAL[0] and value >= EQUAL[1])] or real
    colours = _scale(min(told), max(told)) if told else None
    for (x, y), row, value in zip(places, known, values, strict=True):
        colour = colours.to_rgba(value) if colours and value is not None else COLOURS[0] if not quality else theme.faint
        axes.scatter(x, y, s=70, marker=marks[row.strategy], color=[colour], zorder=3)
    front = sorted(place for place, wins in zip(places, best, strict=True) if wins)
    if not quality:  # with a third value, neighbours in two say nothing of one another
        axes.plot(*zip(*front, strict=True), color=theme.ink, lw=0.9, ls=":", zorder=2)
    axes.scatter(*zip(*front, strict=True), s=190, facecolors="none", edgecolors=theme.ink, linewidths=1.2, zorder=4)
    _name(axes, theme, [(p, row.label) for p, row, wins in zip(places, known, best, strict=True) if wins])
    for name, mark in marks.items():
        axes.scatter([], [], marker=mark, color=theme.ink, label=name)
    axes.legend(frameon=False, labelcolor=theme.ink, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    if colours:
        bar = axes.figure.colorbar(colours, ax=axes, location="bottom", shrink=0.5, aspect=40)
        bar.set_label(titled(quality or "", rows), color=theme.ink)
        bar.ax.tick_params(colors=theme.ink, labelsize=8)
        bar.outline.set_visible(False)
    axes.set_xlabel(f"peak memory, {word}")
    axes.set_ylabel("frames per second, end to end")
    axes.set_ylim(0, 1.15 * max(y for _, y in places))
    axes.margins(x=0.15)


def titled(quality: str, rows: Sequence[Row]) -> str:
    """A metric with what is good of it."""
    way = direction(quality, rows)
    return f"{quality} (a description)" if way == "none" else f"{quality} ({way} is better)"


def worth(row: Row, quality: str | None, rows: Sequence[Row]) -> list[float]:
    """Higher is better in each; a run without the metric of quality is worth nothing in it.

    A metric that is a description is no part of it.
    """
    found = [-(row.peak or 0.0), row.number(FPS) or 0.0]
    way = direction(quality, rows) if quality else "none"
    if quality and way != "none":
        value = row.number(quality)
        found.append(float("-inf") if value is None else value if way == "higher" else -value)
    return found


def _name(axes: Any, theme: Theme, named: Sequence[tuple[tuple[float, float], str]]) -> None:
    """Words beside the points of the front; of those that lie together, above one another."""
    chosen = sorted(named)[:MOST_LABELS]
    for number, (place, label) in enumerate(chosen):
        short = label if len(label) <= 44 else f"{label[:42]}…"
        right = number < (len(chosen) + 1) // 2
        axes.annotate(
            short, place, xytext=(9 if right else -9, 9 + 10 * (number % 2)), textcoords="offset points", fontsize=8,
            color=theme.ink, ha="left" if right else "right",
        )  # fmt: skip


def _scale(low: float, high: float) -> Any:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    least = 0.05 * max(abs(low), abs(high), 1e-9)  # what is as good as equal has one colour
    if high - low < least / 50:
        low, high = low - least, high + least
    return ScalarMappable(Normalize(low, high), colormaps["viridis"])


def _bars(axes: Sequence[Any], theme: Theme, rows: Sequence[Row], quality: str | None) -> None:
    names = sorted({row.strategy for row in rows})
    unit, word = _unit([row.peak or 0 for row in rows])
    last = (quality, lambda row: row.number(quality)) if quality else ("weights moved per block, MB", _moved)
    measures: list[tuple[str, Callable[[Row], float | None]]] = [
        ("frames per second", lambda row: row.number(FPS)),
        (f"peak memory, {word}", lambda row: row.peak and row.peak / unit),
        last,
    ]
    for number, (panel, (title, value)) in enumerate(zip(axes, measures, strict=True)):
        for place, name in enumerate(names):
            found = [v for row in rows if row.strategy == name and (v := value(row)) is not None]
            if not found:
                continue
            panel.barh(place, statistics.median(found), color=COLOURS[place % len(COLOURS)], height=0.6, alpha=0.85)
            panel.scatter(found, [place] * len(found), color=theme.ink, s=10, zorder=3)
        panel.set_yticks(range(len(names)), names if number == 0 else [""] * len(names))
        panel.set_ylim(-0.6, len(names) - 0.4)
        panel.invert_yaxis()
        panel.set_title(title, fontsize=10, loc="left", color=theme.ink)


def _moved(row: Row) -> float:
    """MB of weights that came in for each block, from the host and from other ranks."""
    return sum(row.number(f"traffic/{whence}_bytes_per_block") or 0.0 for whence in ("host", "received")) / 1e6


def _drift(axes: Sequence[Any], theme: Theme, rows: Sequence[Row]) -> None:
    shown = [row for row in rows if len(row.lines) > 1]
    shown = sorted(shown, key=lambda row: -len(row.lines))[:MOST_LINES]
    panels = (("picture/luma", "luma"), ("picture/contrast", "contrast"), ("speed/fps", "frames per second of work"))
    for panel, (key, title) in zip(axes, panels, strict=True):
        for number, row in enumerate(shown):
            points = [
                (line["chunk/frame"] / 25, line[key]) for line in row.lines if key in line and "chunk/frame" in line
            ]
            if points:
                colour, style = COLOURS[number % len(COLOURS)], "-" if number < len(COLOURS) else "--"
                panel.plot(*zip(*points, strict=True), color=colour, ls=style, lw=1.4, label=row.label[:40])
        panel.set_title(title, fontsize=10, loc="left", color=theme.ink)
        panel.set_xlabel("seconds of video")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(
        handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=8,
        labelcolor=theme.ink,
    )  # fmt: skip


def _unit(values: Sequence[float]) -> tuple[float, str]:
    return (1e9, "GB") if max(values, default=0) >= 1e9 else (1e6, "MB")
