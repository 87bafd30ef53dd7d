"""How much slower is a DiT cell than its own matrix products?

Times one cell with full caches at a mid size against the matrix products, convolutions and attention calls that it
makes itself, recorded from the cell and run bare at the same shapes and strides. Both are timed in one process, in
turn, so the figure is a ratio of one run. `--profile` also says where the rest goes.

    python experiments/dit_cell/run.py --out experiments/dit_cell/results.csv
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from liveavatar.checkpoint.read import RandomWeights
from liveavatar.models.dit.cache import StreamCaches, StreamView
from liveavatar.models.dit.context import Grid, reference_place
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.models.dit.state import CellInput, CellState
from liveavatar.strategies.base import place_resident
from liveavatar.tracking import stamp

MID: dict[str, Any] = {
    "dim": 1024,
    "ffn_dim": 2816,  # 2.75 × dim, as in the 14B model (2.7)
    "num_heads": 8,  # of 128 channels, as in the 14B model
    "num_layers": 8,
    "audio_inject_layers": [0, 3, 6],
    "audio_dim": 256,
    "audio_layers": 13,
    "text_dim": 1024,
    "text_len": 512,
}
GRID = Grid(48, 32)  # 384 tokens a latent frame
FRAME = 36  # the ring of 12 latent frames is full
PRODUCTS = ("addmm", "mm", "bmm", "baddbmm", "convolution", "_scaled_dot_product", "mkldnn_linear", "linear")


class Recorder(TorchDispatchMode):
    """Notes every matrix product, convolution and attention call with stand-ins of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__.split(".")[0].startswith(PRODUCTS):
            kept = [_stand_in(a) if isinstance(a, Tensor) else a for a in args]
            self.calls.append(lambda: func(*kept, **kwargs))
        return func(*args, **kwargs)


def _stand_in(tensor: Tensor) -> Tensor:
    """Other memory, same shape, strides and type."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(tensor)


def make_cell(dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    """A closure that runs one cell whose caches are full."""
    with torch.device("meta"):
        dit = AvatarDiT(**MID)
    place_resident(dit, RandomWeights(0), dtype, device)
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(device, dtype)

    caches = StreamCaches(dit.cache_shape(GRID), 1, torch.empty(0, dtype=dtype, device=device))
    for cache in (caches.rings[0], caches.sink):
        cache.k.copy_(random(*cache.k.shape))
        cache.v.copy_(random(*cache.v.shape))
    latents = random(1, 16, 3, GRID.h, GRID.w)
    audio, text = random(1, MID["audio_layers"], MID["audio_dim"], 12), random(1, 77, MID["text_dim"])
    motion = GRID.motion_turns(dit.head_dim)

    @torch.no_grad()
    def cell() -> object:
        turns = GRID.noisy_turns(FRAME, 3, dit.head_dim).to(device)
        place = reference_place(FRAME, 17)
        sink_turns = torch.cat((GRID.reference_turns(place, dit.head_dim), motion)).to(device)
        view = StreamView(caches.rings[0], caches.sink, caches.scratch, FRAME, 3, turns, sink_turns)
        return dit([CellState(CellInput(latents, 857.7, torch.zeros_like(latents), audio, text), view)])

    return cell


def interleaved(a: Callable[[], object], b: Callable[[], object], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of a and b, taken in turn after a warm-up of each."""
    a()
    b()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for which, run in enumerate((a, b)):
            began = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[which].append(time.perf_counter() - began)
    return times


def measure(dtype: torch.dtype, threads: int, repeats: int, device: torch.device) -> dict[str, Any]:
    torch.set_num_threads(threads)
    cell = make_cell(dtype, device)
    with Recorder() as recorder:
        cell()

    @torch.no_grad()
    def bare() -> None:
        for call in recorder.calls:
            call()

    whole, products = interleaved(cell, bare, repeats)
    ratios = [w / p for w, p in zip(whole, products, strict=True)]
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "products": len(recorder.calls),
        "cell_s": round(statistics.median(whole), 4),
        "bare_s": round(statistics.median(products), 4),
        "ratio": round(statistics.median(whole) / statistics.median(products), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }


def profile(dtype: torch.dtype, threads: int, device: torch.device) -> list[tuple[str, float, int]]:
    """Self time of each operator in one warm cell: (name, share of the cell, calls)."""
    torch.set_num_threads(threads)
    cell = make_cell(dtype, device)
    cell()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
        cell()
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in record.key_averages():
        totals[event.key][0] += event.self_cpu_time_total
        totals[event.key][1] += event.count
    everything = sum(t for t, _ in totals.values())
    rows = [(name, spent / everything, int(count)) for name, (spent, count) in totals.items()]
    return sorted(rows, key=lambda row: -row[1])


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
            for operator, share, count in profile(getattr(torch, name), given.threads[0], device)[:25]:
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
