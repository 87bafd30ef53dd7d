"""How much slower is a DiT cell than its own matrix products?

Times one cell with full caches at a mid size against the matrix products, convolutions and attention calls that it
makes itself, recorded from the cell and run bare at the same shapes and strides. Both are timed in one process, in
turn, so the figure is a ratio of one run. `--profile` also says where the rest goes.

    python experiments/dit_cell/run.py --out experiments/dit_cell/results.csv
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import torch

from liveavatar.benching.cell import against_products, make_cell, operators
from liveavatar.tracking import stamp


def measure(dtype: torch.dtype, threads: int, repeats: int, device: torch.device) -> dict[str, Any]:
    torch.set_num_threads(threads)
    found = against_products(make_cell(dtype, device), repeats)
    told = {name: round(value, 3 if name.startswith("ratio") else 4) for name, value in found.items()}
    return {"dtype": str(dtype).removeprefix("torch."), "threads": threads, **told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead of timing")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device = torch.device(given.device)
    if given.profile:
        for name in given.dtypes:
            print(f"{name}, {given.threads[0]} thread(s)")
            torch.set_num_threads(given.threads[0])
            for operator, share, count in operators(make_cell(getattr(torch, name), device))[:25]:
                print(f"  {share:6.1%}  {count:4d} × {operator}")
        return
    rows = [
        measure(getattr(torch, name), threads, given.repeats, device)
        for name in given.dtypes
        for threads in given.threads
    ]
    about = stamp(given.device, 0, 1)
    for row in rows:
        row |= {"cpu": about["run/cpu"], "cores": about["run/cores"], "torch": about["run/torch"]}
        print(row)
    if given.out:
        with given.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
