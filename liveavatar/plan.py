"""python -m liveavatar.plan: which strategies fit a machine, before anything is loaded.

python -m liveavatar.plan model=s2v_14b topology=4x24gb request.size=704*384
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liveavatar.command import run_command
from liveavatar.config import make
from liveavatar.memory.given import GB, Ask, Topology
from liveavatar.memory.plan import PHASES
from liveavatar.strategies.auto import Option, advice, ask_of, best, choose, options

if TYPE_CHECKING:
    from omegaconf import DictConfig

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}


def plan(cfg: DictConfig) -> dict[str, Any]:
    """The whole plan of one configuration as plain values; the same call serves notebooks.

    Raises ValueError, naming the key, for sizes, topologies and kinds of numbers that make no sense.
    """
    ask, topology = ask_of(cfg), make(cfg.topology, "topology")
    found = options(ask, topology)
    order = choose(found)
    told = {label: _told(label, best(ways), ask, topology, found, cfg) for label, ways in found.items()}
    names = [way.label for way in order]
    return {
        "model": ask.model,
        "topology": topology.name,
        "size": str(ask.picture),
        "steps": ask.steps,
        "precision": {"dit": ask.precision, "weights": ask.weights, "cache": ask.cache},
        "budget_gb": topology.device_gb,
        "margin_gb": topology.margin_gb,
        "chosen": names[0] if names else None,
        "runner_up": names[1] if len(names) > 1 else None,
        "command": told[names[0]]["command"] if names else None,
        "strategies": told,
    }


def _told(
    label: str, way: Option, ask: Ask, topology: Topology, found: dict[str, list[Option]], cfg: DictConfig
) -> dict[str, Any]:
    """One strategy in plain values."""
    worst, setup = way.rank, way.plan.setup
    return {
        "fits": way.fits,
        "available": not setup.missing,
        "missing": setup.missing,
        "peak_gb": [rank.peak / GB + topology.margin_gb for rank in way.plan.ranks],
        "tensor_bytes": [rank.peak for rank in way.plan.ranks],
        "excess_bytes": max(0, way.excess),
        "where": way.where,
        "unit": worst.unit,
        "phases_gb": {phase: worst.total(phase) / GB for phase in PHASES},
        "parts": dict(worst.phases[worst.peak_phase]),
        "host_gb": way.plan.host / GB,
        "seconds_per_12_frames": way.pace.seconds,
        "seconds": vars(way.pace),
        "bound_by": way.pace.bound_by,
        "command": _command(way, ask, cfg),
        "advice": "" if way.runs else advice(label, ask, topology, found, cfg.model.size_multiple),
    }


def _command(way: Option, ask: Ask, cfg: DictConfig) -> str:
    """What to type; nothing for what the runtime cannot do yet."""
    if way.plan.setup.missing:
        return ""
    typed = [f"model={ask.model}", f"precision={PRECISIONS[ask.precision]}", f"request.size={ask.picture}"]
    typed += [f"precision.weights={ask.weights}"] if ask.small else []
    return " ".join(("python -m liveavatar.infer", *typed, *way.plan.setup.overrides))


def show(told: dict[str, Any]) -> None:
    """The plan as a table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{told['model']} at {told['size']}, {told['steps']} steps, {told['precision']['weights']} on "
        f"{told['topology']} ({told['budget_gb']:.1f} GB a device)",
        title_justify="left",
    )
    for name in ("strategy", "GB a rank", "where", "host GB", "s / 12 frames", "bound by", "verdict"):
        table.add_column(name, justify="right" if name in ("GB a rank", "host GB", "s / 12 frames") else "left")
    for label, row in told["strategies"].items():
        peaks = row["peak_gb"]
        span = f"{max(peaks):.1f}" if max(peaks) - min(peaks) < 0.05 else f"{min(peaks):.1f}-{max(peaks):.1f}"
        mark = "chosen" if label == told["chosen"] else "runner-up" if label == told["runner_up"] else "fits"
        verdict = (
            f"{mark if row['available'] else 'fits'}" if row["fits"] else f"{row['excess_bytes']:,} bytes too many"
        )
        verdict += f"; {row['missing']}" if row["missing"] else ""
        verdict += f"; {row['advice']}" if row["advice"] and not row["fits"] else ""
        seconds = f"{row['seconds_per_12_frames']:.2f}"
        table.add_row(label, span, row["where"], f"{row['host_gb']:.1f}", seconds, row["bound_by"], verdict)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    if told["chosen"] is None:
        console.print("Nothing that is available today fits: see the last column for what would.")
        return
    parts = told["strategies"][told["chosen"]]["parts"]
    held = ", ".join(
        f"{name} {size / GB:.2f}" for name, size in sorted(parts.items(), key=lambda p: -p[1]) if size > 5e6
    )
    console.print(f"{told['chosen']}, GB on its fullest rank ({told['strategies'][told['chosen']]['where']}): {held}")
    console.print(told["command"], soft_wrap=True, highlight=False)
    if told["runner_up"] is not None:
        console.print(f"The runner-up, {told['runner_up']}:")
        console.print(told["strategies"][told["runner_up"]]["command"], soft_wrap=True, highlight=False)


def verify(cfg: DictConfig, told: dict[str, Any]) -> dict[str, Any]:
    """Play the real strategies on fake tensors, one after another, and set their peaks beside the plan's."""
    from liveavatar.assemble import rehearsals  # torch and Lightning are loaded here

    logging.getLogger("liveavatar").setLevel(logging.INFO)
    return rehearsals(cfg)


def _main(cfg: DictConfig) -> None:
    told = plan(cfg)
    if cfg.plan.verify:
        told["verified"] = verify(cfg, told)
    if cfg.output.json is not None:
        path = Path(cfg.output.json).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    show(told)
    for name, row in told.get("verified", {}).items():
        sys.stdout.write(
            f"verified {name}: rank {row['rank']} needs {row['peak_gb']:.3f} GB of tensors (in {row['unit']}), "
            f"planned {row['planned_gb']:.3f} ({row['error']:+.2%})\n"
        )


def main() -> None:
    """Entry point of `python -m liveavatar.plan` and of the console script."""
    run_command("plan", _main)


if __name__ == "__main__":
    main()
