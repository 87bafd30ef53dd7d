"""The figure of a bench: seconds a cell against memory, our rows beside those of peers. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from liveavatar.benching.rows import FOREIGN

ADVICE = "pip install 'liveavatar[figures]'"


def foreign(row: Mapping[str, Any]) -> bool:
    """Whether a row is a peer's."""
    way = str(row["row"]).partition(".")[2]
    return any(way.startswith(name) for name in FOREIGN)


def memory_of(row: Mapping[str, Any]) -> float | None:
    """Bytes on the device at most: by the card, where there is one; else weights and caches as the row counts."""
    if "card_peak_bytes" in row:
        return row["card_peak_bytes"]
    if "weights_device_bytes" in row:
        return row["weights_device_bytes"] + row.get("caches_device_bytes", 0)
    return None


def draw(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """Write the figure; returns why there is none, or nothing."""
    if find_spec("matplotlib") is None:
        return f"no figure: it needs matplotlib ({ADVICE})"
    shown = [row for row in rows if row["status"] == "ok" and row.get("fps") and memory_of(row) is not None]
    groups = [group for group in ("weights", "full") if any(row["group"] == group for row in shown)]
    if not groups:
        return "no figure: no row has both seconds and memory"
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7 * len(groups), 5), layout="constrained")
    FigureCanvasAgg(figure)
    for place, group in enumerate(groups):
        axes = figure.add_subplot(1, len(groups), place + 1)
        for row in (row for row in shown if row["group"] == group):
            theirs = foreign(row)
            x, y = (memory_of(row) or 0.0) / 1e6, row["s_per_cell"]
            axes.plot([x], [y], "s" if theirs else "o", color="#ee6677" if theirs else "#4477aa")
            axes.annotate(row["row"].partition(".")[2], (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
        axes.set_xlabel("MB on the device" if "card_peak_bytes" not in shown[0] else "MB in use on the card")
        axes.set_ylabel("seconds a cell")
        axes.set_title(f"{group}: ours round, others square")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)
    return ""
