"""memory.png from memory.json: who holds what over time, the plan's line over it. matplotlib comes with `figures`."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from liveavatar.memory.ledger import COMPONENTS, WORDS

log = logging.getLogger(__name__)

ADVICE = "pip install 'liveavatar[figures]'"
COLOURS = ("#1f4e79", "#4f81bd", "#2a9d8f", "#8ab17d", "#c7e0b4", "#b8a9c9", "#e9c46a", "#f4a261", "#d98880", "#a569bd")
ACTIVATIONS, PARKED, PROCESS, OTHER = "#e76f51", "#9aa5b1", "#d5dbe1", "#eef1f4"
PHASES = {"load": "#6c757d", "encode": "#d9c8a0", "prefill": "#7d5a5a", "steady": "#a8c3bc", "decode": "#c98b6b"}
PLAN = "#c1121f"
GB = 1e9


def draw_if_possible(source: Path | None, wanted: bool = True) -> Path | None:
    """The figure of a run that has just ended; a line in the log where nothing can draw it."""
    if source is None or not wanted:
        return None
    if find_spec("matplotlib") is None:
        log.info("%s holds the memory over time; no figure was drawn: %s", source.name, ADVICE)
        return None
    try:
        return draw(source)
    except Exception as error:  # noqa: BLE001  a picture is never worth a run
        log.warning("no figure was drawn of %s: %s", source.name, error)
        return None


def load(source: Path) -> dict[str, Any]:
    """The document in a run directory, or in a file. Raises ValueError for what holds none."""
    path = source / "memory.json" if source.is_dir() else source
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror or error}): name the folder of a finished run, output.dir"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is no memory.json of a run: {error}") from error
    if not isinstance(document, dict) or document.get("format") != 1 or "timeline" not in document:
        raise ValueError(f"{path} is no memory.json that this version can read: it wants format 1, with a timeline")
    return document


def draw(source: Path, target: Path | None = None) -> Path:
    """Draw the timeline of a run directory or a memory.json; returns the picture's path, beside it unless named.

    Raises ValueError where there is no timeline, or no matplotlib to draw it.
    """
    if find_spec("matplotlib") is None:
        raise ValueError(f"a figure needs matplotlib: {ADVICE}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    document = load(source)
    table = document["timeline"]
    if len(table.get("seconds", ())) < 2:
        raise ValueError(f"{source} holds no timeline: profile.memory was off, or the run ended before it began")
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    strip, device, host = figure.subplots(3, 1, sharex=True, height_ratios=[0.35, 4, 3.2])
    gpu = str(document["device"]).startswith("cuda")
    _draw_phases(strip, table)
    _draw_device(device, document, gpu)
    _draw_host(host, document, gpu)
    host.set_xlabel("seconds since the run began to load")
    figure.suptitle(_title(document), fontsize=11, x=0.01, ha="left")
    target = target or (source if source.is_dir() else source.parent) / "memory.png"
    draft = target.with_name(target.name + ".part")
    figure.savefig(draft, dpi=130, format="png")
    draft.replace(target)
    return target


def _title(document: dict[str, Any]) -> str:
    title = f"Memory on {document['device']}"
    if document["rank"]:
        title += f", rank {document['rank']}"
    plan = document.get("plan") or {}
    error = plan.get("error", {}).get("all")
    if error is not None:
        title += f": the plan foresaw {1 + error:.0%} of what was measured"
    if document.get("failure"):
        title += f"; out of memory in phase {document['failure']['where']['phase']}"
    return title


def _draw_phases(axes: Any, table: dict[str, list[Any]]) -> None:
    from matplotlib.patches import Patch

    seconds = table["seconds"]
    for phase, points in groupby(range(len(seconds)), key=lambda i: table["phase"][i]):
        run = list(points)
        start, end = seconds[max(0, run[0] - 1)], seconds[run[-1]]
        axes.axvspan(start, max(end, start), color=PHASES.get(phase, "#cccccc"), linewidth=0)
    axes.tick_params(left=False, labelleft=False, bottom=False)
    axes.set_xlim(seconds[0], seconds[-1])
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    seen = dict.fromkeys(table["phase"])
    handles = [Patch(color=PHASES.get(phase, "#cccccc"), label=phase) for phase in seen]
    axes.legend(handles=handles, ncols=len(handles), loc="lower right", bbox_to_anchor=(1, 0.95), frameon=False,
                fontsize=8, handlelength=1)  # fmt: skip


def _draw_device(axes: Any, document: dict[str, Any], gpu: bool) -> None:
    table = document["timeline"]
    seconds, names = table["seconds"], _components(table, "device")
    layers = [_scaled(table[f"device/{name}"]) for name in names]
    resting = [sum(values) for values in zip(*layers, strict=True)] if layers else [0.0] * len(seconds)
    above = _above(table, resting)
    colours = [_colour(name) for name in names]
    labels = [WORDS.get(name, name) for name in names]
    if any(above):
        layers, colours, labels = [*layers, above], [*colours, ACTIVATIONS], [*labels, "activations"]
    if layers:
        axes.stackplot(seconds, *layers, colors=colours, labels=labels, linewidth=0, step="pre")
    if gpu:
        for kind, style in (("reserved", "-"), ("driver", ":")):
            if kind in table:
                axes.plot(
                    seconds,
                    _scaled(_filled(table[kind])),
                    style,
                    color="#222222",
                    lw=1,
                    label=kind,
                    drawstyle="steps-pre",
                )
    plan = (document.get("plan") or {}).get("peaks")
    if plan:
        line = [plan.get(phase, float("nan")) / GB for phase in table["phase"]]
        axes.plot(seconds, line, color=PLAN, lw=1.6, ls="--", label="plan, by phase", drawstyle="steps-pre")
    axes.set_ylabel("on the device" if gpu else "tensors with the device's role")
    _finish(axes)


def _draw_host(axes: Any, document: dict[str, Any], gpu: bool) -> None:
    """The resident set: what is told of it, and the rest. On a CPU, the device's tensors lie in it."""
    table = document["timeline"]
    seconds, host = table["seconds"], _scaled(table["host"])
    base = min(document["baseline"] / GB, min(host))
    layers, labels, colours = [[base] * len(seconds)], [WORDS["process"]], [PROCESS]
    for side, colour in (("parked", PARKED), *(() if gpu else (("device", "#4f81bd"),))):
        names = _components(table, side)
        if names:
            columns = [_scaled(table[f"{side}/{name}"]) for name in names]
            layers.append([sum(values) for values in zip(*columns, strict=True)])
            told = ", ".join(WORDS.get(name, name) for name in names)
            labels.append(f"parked: {told}" if side == "parked" else "components above")
            colours.append(colour)
    # zeroed rooms count only once they are touched, so what is told may exceed what is resident
    room = [h - base for h in host]
    fitted = _within(layers[1:], room)
    rest = [max(0.0, r - sum(values)) for r, *values in zip(room, *fitted, strict=True)]
    axes.stackplot(seconds, layers[0], *fitted, rest, colors=[*colours, OTHER], linewidth=0, step="pre",
                   labels=[*labels, "activations and whatever is not told apart"])  # fmt: skip
    axes.plot(seconds, host, color="#222222", lw=1.2, label="resident set", drawstyle="steps-pre")
    axes.set_ylabel("main memory")
    _finish(axes)


def _within(layers: Sequence[Sequence[float]], room: Sequence[float]) -> list[list[float]]:
    """Layers shrunk, point by point, to what there is room for."""
    fitted: list[list[float]] = [[] for _ in layers]
    for i, most in enumerate(room):
        total = sum(layer[i] for layer in layers)
        factor = 1.0 if total <= most or not total else max(0.0, most) / total
        for layer, into in zip(layers, fitted, strict=True):
            into.append(layer[i] * factor)
    return fitted


def _above(table: dict[str, list[Any]], resting: Sequence[float]) -> list[float]:
    """Activations: read where they are known, else the most that was read in the same phase."""
    known = table.get("allocated", [None] * len(resting))
    most: dict[str, float] = {}
    for value, rest, phase in zip(known, resting, table["phase"], strict=True):
        if value is not None:
            most[phase] = max(most.get(phase, 0.0), value / GB - rest)
    return [
        max(0.0, value / GB - rest) if value is not None else most.get(phase, 0.0)
        for value, rest, phase in zip(known, resting, table["phase"], strict=True)
    ]


def _components(table: dict[str, list[Any]], side: str) -> list[str]:
    return [key.partition("/")[2] for key in table if key.startswith(f"{side}/")]


def _colour(name: str) -> str:
    return COLOURS[COMPONENTS.index(name) % len(COLOURS)] if name in COMPONENTS else "#777777"


def _scaled(values: Sequence[float | None]) -> list[float]:
    return [(value or 0) / GB for value in values]


def _filled(values: Sequence[float | None]) -> list[float]:
    """Readings that were left out repeat the one before."""
    found: list[float] = []
    for value in values:
        found.append(value if value is not None else found[-1] if found else 0)
    return found


def _finish(axes: Any) -> None:
    axes.set_ylim(bottom=0)
    if axes.get_ylim()[1] < 1:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value * 1000:.0f} MB")
    else:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} GB")
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
