"""Results as CSV, JSON and Markdown: one table a kind of work, each column named with its unit."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

GROUPS = {
    "weights": "Weights only: the work without caches, like for like",
    "full": "Caches full",
    "cell": "A cell against its own matrix products and attention",
    "profile": "Where the time of a cell goes",
    "vae": "Decoding 12 frames of a stream",
    "around": "Around the DiT",
    "machine": "The machine",
}
NOT_MEASURED = "not measured yet"


def _number(digits: int) -> Callable[[Any], str]:
    return lambda value: f"{value:.{digits}f}"


def _megabytes(value: Any) -> str:
    return f"{value / 1e6:.2f}" if value < 1e9 else f"{value / 1e6:.0f}"


def _yes(value: Any) -> str:
    return "yes" if value else "no"


def _significant(value: Any) -> str:
    return f"{value:.3g}"


MB, RATIO, SECONDS, SHARE = _megabytes, _number(3), _number(4), lambda value: f"{100 * value:.1f} %"
Column = tuple[str, str, Callable[[Any], str]]

STREAM: tuple[Column, ...] = (
    ("s_per_cell", "s / cell", SECONDS),
    ("cell_p5_s", "p5", SECONDS),
    ("cell_p95_s", "p95", SECONDS),
    ("x_over", "× resident", RATIO),
    ("x_interval", "95 %", str),
    ("fps", "frames/s, DiT alone", _number(2)),
    ("over_floor", "× floor of its products", _number(2)),
    ("predicted_s_per_cell", "predicted s / cell", SECONDS),
    ("prediction_off", "prediction off by", SHARE),
    ("predicted_bound", "predicted bound", str),
    ("peak_allocated_bytes", "peak allocated MB", MB),
    ("peak_reserved_bytes", "reserved MB", MB),
    ("card_peak_bytes", "card MB", MB),
    ("predicted_peak_bytes", "predicted peak MB", MB),
    ("alloc_retries", "retries", _number(0)),
    ("host_peak_bytes", "host peak MB", lambda value: f"{value / 1e6:.0f}"),
    ("pinned_bytes", "pinned by the allocator MB", MB),
    ("weights_device_bytes", "weights on device MB", MB),
    ("weights_host_bytes", "in host memory MB", MB),
    ("weights_in_per_cell", "weights in / cell MB", MB),
    ("fetches_per_cell", "fetches / cell", _number(2)),
    ("caches_device_bytes", "caches on device MB", MB),
    ("caches_in_per_cell", "caches in / cell MB", MB),
    ("caches_out_per_cell", "out MB", MB),
    ("hidden_per_cell", "hidden / cell MB", MB),
    ("h2d_per_cell", "H2D / cell MB", MB),
    ("d2h_per_cell", "D2H MB", MB),
    ("gbs", "GB/s", _number(1)),
    ("copy_busy", "copies busy", SHARE),
    ("compute_busy", "kernels busy", SHARE),
    ("stall_s_per_cell", "stall s / cell", SECONDS),
    ("resident_blocks", "blocks resident", _number(0)),
    ("max_diff", "largest difference", _significant),
    ("bitwise", "same bits", _yes),
    ("setup_s", "set up s", _number(1)),
)
COLUMNS: dict[str, tuple[Column, ...]] = {
    "weights": STREAM,
    "full": STREAM,
    "cell": (
        ("cell_s", "cell s", SECONDS),
        ("bare_s", "its products s", SECONDS),
        ("ratio", "ratio", RATIO),
        ("ratio_min", "least", RATIO),
        ("ratio_max", "most", RATIO),
        ("products", "products", _number(0)),
    ),
    "profile": (
        *((f"share_{name}", name, SHARE) for name in ("attention", "linear", "rotary", "modulation", "copies", "rest")),
        ("launch_gaps", "launch gaps", SHARE),
    ),
    "vae": (
        ("decode_s", "s / 12 frames", SECONDS),
        ("decode_layers", "as layers of a block of video", _number(2)),
        ("frames", "frames", _number(0)),
        ("state_bytes", "state MB", MB),
        ("weights_device_bytes", "weights MB", MB),
        ("peak_allocated_bytes", "peak allocated MB", MB),
        ("card_peak_bytes", "card MB", MB),
    ),
    "around": (
        ("rtf", "s / s of video", _number(2)),
        ("first_frame_s", "first frame s", _number(2)),
        ("load_s", "load s", _number(2)),
        ("piece_s_warm", "s / 12 frames, warm", _number(2)),
        ("denoise_s", "denoise s", _number(2)),
        ("decode_s", "decode s", _number(2)),
        ("interpreter_s", "python s", SECONDS),
        ("import_s", "import s", SECONDS),
        ("import_ratio", "import × python", _number(2)),
        ("help_s", "--help s", _number(2)),
        ("help_ratio", "--help × python", _number(1)),
        ("heavy_modules", "heavy modules at import", _number(0)),
        ("command_s", "plan command s", _number(2)),
        ("command_ratio", "× python", _number(1)),
        ("inside_s", "plan inside s", _number(2)),
        ("ways", "strategies weighed", _number(0)),
        ("ways_that_fit", "that fit", _number(0)),
    ),
    "machine": (
        ("h2d_gbs", "to the device GB/s", _number(1)),
        ("d2h_gbs", "back GB/s", _number(1)),
        ("both_gbs", "both GB/s", _number(1)),
        ("host_copy_gbs", "copies in host memory GB/s", _number(1)),
        ("bfloat16_tflops", "bfloat16 TFLOP/s", _significant),
        ("float32_tflops", "float32 TFLOP/s", _significant),
    ),
}


def write(folder: Path, summaries: Sequence[Mapping[str, Any]], about: Mapping[str, Any], notes: Sequence[str]) -> None:
    """results.json, results.csv and table.md, each replaced as a whole."""
    told = {"about": dict(about), "rows": [dict(row) for row in summaries]}
    _replace(folder / "results.json", json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    names = list(dict.fromkeys(name for row in summaries for name in row))
    draft = folder / "results.csv.part"
    with draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _plain(value) for name, value in row.items()} for row in summaries)
    draft.replace(folder / "results.csv")
    _replace(folder / "table.md", markdown(summaries, about, notes))


def _plain(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) and value != round(value) else value


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def markdown(summaries: Sequence[Mapping[str, Any]], about: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """The tables, what they were measured on, and what was skipped."""
    ran = any(row["status"] not in ("skipped", "not run") for row in summaries)
    parts = [headline(about, ran), *notes]
    for group, title in GROUPS.items():
        rows = [row for row in summaries if row["group"] == group]
        if rows:
            parts.append(f"### {title}\n\n" + group_table(rows, COLUMNS[group]))
    skipped = [row for row in summaries if row["status"] == "skipped"]
    if skipped:
        by_reason: dict[str, list[str]] = {}
        for row in skipped:
            by_reason.setdefault(row["reason"], []).append(row["row"])
        lines = [f"- {reason}: {', '.join(names)}" for reason, names in by_reason.items()]
        parts.append("### Skipped\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def headline(about: Mapping[str, Any], measured: bool = True) -> str:
    """What it was measured on, and the command, in a sentence."""
    if not measured:
        return (
            f"`{about.get('command', '')}`\n\nNot measured: no row could run here. What is predicted is the planner's "
            "figure for one H200, with the rates of `topology=1xh200`."
        )
    load = f" Load average of the machine meanwhile: {about['load']:.1f}." if about.get("load") is not None else ""
    device = about.get("run/gpu") or about.get("run/cpu", "")
    versions = ", ".join(f"{name} {about[f'run/{name}']}" for name in ("torch", "lightning") if f"run/{name}" in about)
    peers = ", ".join(
        f"{name} {about[f'run/{name}']}" for name in ("accelerate", "diffusers") if f"run/{name}" in about
    )
    return (
        f"`{about.get('command', '')}`\n\nMeasured {about.get('date', '')} on {device}, {about.get('run/cores', '?')} "
        f"cores, {about.get('run/threads', '?')} thread(s) a process; {versions}; peers {peers or 'not installed'}. "
        f"Seed {about.get('seed', 0)}, {about.get('repeats', 1)} repeat(s)." + load
    )


def group_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """One table: columns for which no row has a value are left out; a row without a result says why."""
    shown = [column for column in columns if any(row.get(column[0]) not in (None, 0, 0.0) for row in rows)]
    lines = ["| row | what |" + "".join(f" {title} |" for _, title, _ in shown)]
    lines.append("| --- | --- |" + " ---: |" * len(shown))
    for row in rows:
        what = row.get("about", "")
        if row["status"] == "oom":
            what += f" — **out of memory** ({row['reason']})"
        elif row["status"] == "failed":
            what += f" — **failed** ({row['reason']})"
        elif row["status"] in ("skipped", "not run"):
            what += f" — {NOT_MEASURED}"
        cells = [told(row, name, form) for name, _, form in shown]
        lines.append(f"| {row['row']} | {what.replace('|', '/')} |" + "".join(f" {cell} |" for cell in cells))
    return "\n".join(lines)


def told(row: Mapping[str, Any], name: str, form: Callable[[Any], str]) -> str:
    value = row.get(name)
    return "" if value is None else form(value)
