"""Where does the time of a cell go, by kind of work, and what does compiling its elementwise stretches change?

    python -m experiments.dit_cell.parts --out experiments/dit_cell

`tiny` is the embedded model at 128 x 128; `full width` is a layer of the 14B model (its first, with its injector) at
the same picture; both with full caches, float32. Shares are of a profiled warm cell, medians over the repeats. Plain
and compiled are timed in one process, in turn, without a profiler; `largest difference` is that of their velocities.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from experiments.tables import write
from liveavatar.benching.cell import PARTS, interleaved, make_cell, shares
from liveavatar.benching.sizes import keywords
from liveavatar.config import conf_dir
from liveavatar.models.dit.context import Grid
from liveavatar.tracking import stamp

CPU, DTYPE, GRID = torch.device("cpu"), torch.float32, Grid(16, 16)
COMPARED = ("compiled_s", "ratio", "ratio_least", "ratio_most", "largest_difference")


def sizes_of(shape: str) -> dict[str, Any]:
    """The keywords of the DiT of a shape."""
    if shape == "full width":
        return keywords("14b") | {"num_layers": 1, "audio_inject_layers": [0]}
    found = OmegaConf.to_container(OmegaConf.load(Path(conf_dir()) / "model" / "tiny.yaml").dit)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items() if key != "_target_"}


def measure(shape: str, threads: int, repeats: int) -> dict[str, Any]:
    """A row: seconds plain and compiled, their ratio, and the shares of the plain cell."""
    torch.set_num_threads(threads)
    plain = make_cell(DTYPE, CPU, sizes_of(shape), GRID)
    told = [shares(plain, CPU) for _ in range(repeats)]
    row: dict[str, Any] = {"shape": shape, "threads": threads}
    row |= {part: statistics.median(one[f"share_{part}"] for one in told) for part in PARTS}
    if shape == "full width":  # a second model of that size would not fit beside it
        times = [one["cell_s"] for one in told]
        return row | {"cell_s": statistics.median(times), **dict.fromkeys(COMPARED, "")}
    compiled = make_cell(DTYPE, CPU, sizes_of(shape), GRID, compiled=True)
    outputs = [states[-1].output for states in (plain(), compiled())]
    assert outputs[0] is not None
    assert outputs[1] is not None
    apart = float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max())
    first, second = interleaved(plain, compiled, 3 * repeats)
    ratios = [a / b for a, b in zip(second, first, strict=True)]
    found = (statistics.median(second), statistics.median(ratios), min(ratios), max(ratios), apart)
    return row | {"cell_s": statistics.median(first), **dict(zip(COMPARED, found, strict=True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shapes", nargs="+", choices=["tiny", "full width"], default=["tiny", "full width"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = [
        measure(shape, threads, given.repeats if shape == "tiny" else min(3, given.repeats))
        for shape in given.shapes
        for threads in given.threads
    ]
    about = stamp("cpu", max(given.threads), 1)
    print(write(given.out, "parts", rows, about) if given.out else rows)


if __name__ == "__main__":
    main()
