"""From outcomes to a table: medians over repeats, ratios within a repeat, outputs compared, predictions beside."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from liveavatar.benching.conduct import Turn
from liveavatar.benching.rows import Row

FRAMES, STEPS = 12, 4
RESAMPLES = 2000

COUNTS = (
    "weights_device_bytes",
    "weights_host_bytes",
    "weights_in_per_cell",
    "fetches_per_cell",
    "caches_device_bytes",
    "caches_in_per_cell",
    "caches_out_per_cell",
    "hidden_per_cell",
    "hoisted_bytes",
    "layers",
    "products",
    "heavy_modules",
    "ways",
    "ways_that_fit",
    "frames",
    "state_bytes",
    "bitwise",
)
"""Columns that are the same on every machine, to the byte."""

RATIOS = ("x_over", "ratio", "import_ratio", "help_ratio", "command_ratio")
"""Columns that compare two things measured in turn within one run; the lower the better."""


def summarise(
    rows: Sequence[Row],
    outcomes: Mapping[tuple[str, int], dict[str, Any]],
    skipped: Mapping[str, str],
    folder: Path,
) -> list[dict[str, Any]]:
    """A summary of each row, in the order of the suite; `outcomes` by row and repeat, `skipped` the reasons."""
    found: list[dict[str, Any]] = []
    by_name = {row.name: row for row in rows}
    machine = _machine(outcomes)
    for row in rows:
        mine = {repeat: one for (name, repeat), one in outcomes.items() if name == row.name}
        summary: dict[str, Any] = {"row": row.name, "group": row.group, "about": _about(row)}
        if row.name in skipped:
            summary |= {"status": "skipped", "reason": skipped[row.name]}
        elif not mine:
            summary |= {"status": "not run", "reason": "resume=true goes on"}
        else:
            summary |= _of(row, mine)
            if summary["status"] == "ok" and row.job["kind"] == "stream":
                summary |= _beside(row, mine, outcomes, by_name, folder)
        summary |= _foreseen(row, machine, summary)
        found.append(summary)
    _balance(found, by_name)
    return [*found, *_composed(found)]


def _balance(found: Sequence[dict[str, Any]], by_name: Mapping[str, Row]) -> None:
    """What decoding costs in layers of the DiT on the same card: `strategy.decode_cost` of a pipeline."""
    from liveavatar.benching.sizes import keywords

    told = {row["row"]: row for row in found}
    for name, row in by_name.items():
        truth = told.get(name.replace("vae", "full.resident"), {})
        if row.job["kind"] != "vae" or row.job["device"] != "cuda" or "s_per_cell" not in truth:
            continue
        layer_s = STEPS * truth["s_per_cell"] / keywords(row.job["shape"])["num_layers"]
        if "decode_s" in told[name]:
            told[name]["decode_layers"] = told[name]["decode_s"] / layer_s


def _about(row: Row) -> str:
    if row.about or row.job["kind"] != "stream":
        return row.about
    from liveavatar.benching.abouts import ABOUTS

    words = {"reference": ", caches moved as upstream does", "host": ", caches behind our ring"}
    ranks = f", {row.job['ranks']} ranks (rank 0 counted)" if row.job["ranks"] > 1 else ""
    resident = f", {row.job['resident']} blocks resident" if row.job["resident"] else ""
    return ABOUTS[row.job["way"]] + words.get(row.job["kv"], "") + ranks + resident


def _machine(outcomes: Mapping[tuple[str, int], dict[str, Any]]) -> dict[str, Any]:
    """What was measured of the card, and the context that capped rows have found."""
    found: dict[str, Any] = {}
    for one in outcomes.values():
        told = one.get("found", {})
        found |= {name: told[name] for name in ("context_bytes", "card_bytes") if name in told}
        if "h2d_gbs" in told or "host_copy_gbs" in told:
            found |= told
    return found


def _of(row: Row, mine: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """The outcome of a row over its repeats: the median of every number; the worst status, with its reason."""
    good = [one["found"] for one in mine.values() if one["status"] == "ok"]
    worst = next((one for one in mine.values() if one["status"] != "ok"), None)
    summary: dict[str, Any] = {"status": "ok" if worst is None else worst["status"], "repeats": len(mine)}
    summary["reason"] = "" if worst is None else worst["reason"]
    names = dict.fromkeys(name for found in good for name in found)
    for name in names:
        values = [found[name] for found in good if name in found]
        numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
        if name in COUNTS and len(set(values)) > 1:
            summary |= {"status": "failed", "reason": f"{name} differs between repeats: {sorted(set(values))}"}
        summary[name] = statistics.median(numbers) if numbers and len(numbers) == len(values) else values[0]
    if summary.get("over_cap"):
        summary |= {"status": "failed", "reason": f"the card had {summary['card_peak_bytes'] / 2**30:.2f} GiB in use"}
    if "s_per_cell" in summary and row.timed and row.job["way"] != "diagonal_stage":
        summary["fps"] = FRAMES / (STEPS * summary["s_per_cell"])
    return summary


def _beside(
    row: Row,
    mine: Mapping[int, dict[str, Any]],
    outcomes: Mapping[tuple[str, int], dict[str, Any]],
    by_name: Mapping[str, Row],
    folder: Path,
) -> dict[str, Any]:
    """Time against the row it is set beside, repeat by repeat, and its latents against that row's."""
    if row.against is None or row.against not in by_name:
        return {}
    pairs = []
    for repeat, one in mine.items():
        other = outcomes.get((row.against, repeat)) or {}
        if one["status"] == other.get("status") == "ok":
            pairs.append(one["found"]["s_per_cell"] / other["found"]["s_per_cell"])
    found: dict[str, Any] = {}
    if pairs and row.timed:
        found["x_over"] = statistics.median(pairs)
    if len(pairs) > 1 and row.timed:  # one measurement has no spread to tell
        low, high = interval(pairs)
        found |= {"x_low": low, "x_high": high, "x_interval": f"{low:.2f} to {high:.2f}"}
    latents = [folder / "latents" / f"{Turn(one, 0).stem}.safetensors" for one in (row, by_name[row.against])]
    if all(path.exists() for path in latents):
        bitwise, worst = compared(*latents)
        found |= {"bitwise": bitwise, "max_diff": worst}
    return found


def compared(mine: Path, other: Path) -> tuple[bool, float]:
    """Whether the blocks that both have finished are the same bits, and the largest difference."""
    from safetensors.torch import load_file

    a, b = (load_file(str(path))["latents"] for path in (mine, other))
    shared = min(len(a), len(b))
    return bool((a[:shared] == b[:shared]).all()), float((a[:shared] - b[:shared]).abs().max())


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """A 95 % interval of the median by resampling."""
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]


def _foreseen(row: Row, machine: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the planner says, for ways that it knows; how far the measured cell is from the floor of its products."""
    from liveavatar.benching.abouts import PLANS
    from liveavatar.benching.planned import floor_s, predict
    from liveavatar.benching.sizes import keywords

    if row.job["kind"] != "stream" or row.job["way"] not in PLANS or row.job["ranks"] > 1:
        return {}
    if row.job["device"] != "cuda" or row.job["kv"] == "reference":  # the planner does not know upstream's offload
        return {}
    told = keywords(row.job["shape"])
    found = predict(told, row.job, PLANS[row.job["way"]], dict(machine))
    found = {name: value for name, value in found.items() if name.startswith("predicted")}
    if "s_per_cell" in summary and "predicted_s_per_cell" in found:
        found["prediction_off"] = found["predicted_s_per_cell"] / summary["s_per_cell"] - 1
    rate = machine.get(f"{row.job['dtype']}_tflops")
    if rate and row.job["way"].startswith("resident") and "s_per_cell" in summary and row.job["kv"] == "device":
        found["over_floor"] = summary["s_per_cell"] / floor_s(told, row.job["size"], row.job["dtype"], rate)
    return found


def _composed(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The figure of a pipeline whose stages were timed alone: in the steady state a cell leaves every slowest tick."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in found:
        if "diagonal_stage" in row["row"]:
            groups.setdefault(row["row"].partition("@")[2], []).append(row)
    composed = []
    for suffix, stages in groups.items():
        if any(stage["status"] != "ok" for stage in stages):
            continue
        slowest = max(stages, key=lambda stage: stage["s_per_cell"])
        name = "full.diagonal_x4_composed" + (f"@{suffix}" if suffix else "")
        summary = {
            "row": name,
            "group": "full",
            "about": "COMPOSED, not run: 4 cards by the schedule, a cell leaves each tick of the slowest stage",
            "status": "ok",
            "reason": "",
            "s_per_cell": slowest["s_per_cell"],
            "fps": FRAMES / (STEPS * slowest["s_per_cell"]),
        }
        peaks = [stage["peak_allocated_bytes"] for stage in stages if "peak_allocated_bytes" in stage]
        composed.append(summary | ({"peak_allocated_bytes": max(peaks)} if peaks else {}))
    return composed
