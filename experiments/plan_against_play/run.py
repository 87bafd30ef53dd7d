"""Does the plan meet what the strategies need? Each of them, played at full size on fake tensors, beside its plan.

    python -m experiments.plan_against_play.run --out experiments/plan_against_play

Every strategy that the runtime has, on each machine and for each size: its best way, by the planner, and the fullest of
its ranks. Needs no weights and no GPU; a machine and a size take about a minute on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from experiments.tables import save
from liveavatar.assemble import rehearsals
from liveavatar.config import compose
from liveavatar.tracking import stamp

MACHINES = ("1x24gb", "4x24gb", "5x24gb", "5x80gb")
SIZES = ("704*384", "384*256")


def compared(machine: str, size: str) -> list[dict[str, Any]]:
    """A row a strategy: GB of tensors on its fullest rank, as planned and as played."""
    told = rehearsals(compose("plan", [f"topology={machine}", f"request.size={size}", "plan.only=all"]))
    return [
        {
            "machine": machine,
            "size": size,
            "strategy": name,
            "rank": row["rank"],
            "planned_gb": round(row["planned_gb"], 3),
            "played_gb": round(row["peak_gb"], 3),
            "error_percent": round(100 * row["error"], 2),
            "largest_in": row["unit"] or "between passes",
        }
        for name, row in told.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--machines", nargs="+", default=MACHINES)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    given = parser.parse_args()
    rows = [row for machine in given.machines for size in given.sizes for row in compared(machine, size)]
    save(given.out, rows, stamp("cpu", torch.get_num_threads(), 1))
    worst = max(rows, key=lambda row: abs(row["error_percent"]))
    print(f"{len(rows)} rows; the worst: {worst}")


if __name__ == "__main__":
    main()
