"""One cell with full caches at a middle size: against the matrix products and attention that it makes itself, recorded
from it and run bare at the same shapes and strides; and where its time goes."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from liveavatar.benching.caches import filled
from liveavatar.benching.shapes import TiledWeights
from liveavatar.benching.sizes import keywords
from liveavatar.models.dit import block, cache
from liveavatar.models.dit.cache import StreamCaches, StreamView
from liveavatar.models.dit.context import Grid, reference_place
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.models.dit.state import CellInput, CellState
from liveavatar.ops.compiled import compile_stretches
from liveavatar.strategies.base import place_resident

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
LINEAR = ("aten::linear", "aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::matmul", "mkldnn::")
COPIES = ("aten::copy_", "aten::clone", "aten::contiguous", "aten::cat", "Memcpy")
PARTS: tuple[str, ...] = ("attention", "linear", "rotary", "modulation", "copies", "rest")


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


def make_cell(
    dtype: torch.dtype,
    device: torch.device,
    sizes: dict[str, Any] | None = None,
    grid: Grid = GRID,
    compiled: bool = False,
) -> Callable[[], list[CellState]]:
    """A closure that runs one cell whose caches are full; `compiled` as the option `compile=true` does it."""
    given = MID if sizes is None else sizes
    with torch.device("meta"):
        dit = AvatarDiT(**given)
    place_resident(dit, TiledWeights(dtype), dtype, device)
    if compiled:
        compile_stretches(dit, "inductor", device)
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(device, dtype)

    like = torch.empty(0, dtype=dtype, device=device)
    caches = filled(StreamCaches)(dit.cache_shape(grid), range(1), like, 0)
    latents = random(1, 16, 3, grid.h, grid.w)
    audio = random(1, given["audio_layers"], given["audio_dim"], 12)
    text = random(1, min(77, given["text_len"]), given["text_dim"])
    motion = grid.motion_turns(dit.head_dim)

    @torch.no_grad()
    def cell() -> list[CellState]:
        turns = grid.noisy_turns(FRAME, 3, dit.head_dim).to(device)
        place = reference_place(FRAME, 17)
        sink_turns = torch.cat((grid.reference_turns(place, dit.head_dim), motion)).to(device)
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


def against_products(cell: Callable[[], object], repeats: int) -> dict[str, Any]:
    """Seconds of a cell and of its own products, and their ratio."""
    with Recorder() as recorder:
        cell()

    @torch.no_grad()
    def bare() -> None:
        for call in recorder.calls:
            call()

    whole, products = interleaved(cell, bare, repeats)
    ratios = [w / p for w, p in zip(whole, products, strict=True)]
    return {
        "products": len(recorder.calls),
        "cell_s": statistics.median(whole),
        "bare_s": statistics.median(products),
        "ratio": statistics.median(whole) / statistics.median(products),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def operators(cell: Callable[[], object]) -> list[tuple[str, float, int]]:
    """Self time of each operator in one warm cell: (name, share of the cell, calls)."""
    cell()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as record:
        cell()
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in record.key_averages():
        totals[event.key][0] += event.self_cpu_time_total
        totals[event.key][1] += event.count
    everything = sum(spent for spent, _ in totals.values())
    rows = [(name, spent / everything, int(count)) for name, (spent, count) in totals.items()]
    return sorted(rows, key=lambda row: -row[1])


@contextmanager
def _named() -> Iterator[None]:
    """While it lasts, rotation, modulation and the assembly of caches carry their names in a profile."""
    places = [(cache, "rotate", "rotary"), (cache.Scratch, "assemble", "copies")]
    places += [(block, name, "modulation") for name in ("modulate", "gated_add", "plain_norm")]
    with ExitStack() as stack:
        for owner, name, part in places:
            stack.enter_context(mock.patch.object(owner, name, _under(f"part/{part}", getattr(owner, name))))
        yield


def _under(label: str, made: Callable[..., Any]) -> Callable[..., Any]:
    def called(*given: Any, **named: Any) -> Any:
        with record_function(label):
            return made(*given, **named)

    return called


def part_of(names: list[str]) -> str:
    """The part of a cell that an operator belongs to, from its own name and those it was called by, inner first."""
    for name in names:
        if name.startswith("part/"):
            return name.removeprefix("part/")
        if "scaled_dot_product" in name or "flash" in name:
            return "attention"
        if name.startswith(LINEAR):
            return "linear"
    return "copies" if names and names[0].startswith(COPIES) else "rest"


def shares(cell: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Seconds of one warm cell, the share of each part, and on a GPU what kernels do not fill (launch gaps)."""
    cuda = device.type == "cuda"
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    cell()
    with _named(), torch.profiler.profile(activities=kinds) as record:
        began = time.perf_counter()
        cell()
        if cuda:
            torch.cuda.synchronize(device)
        wall = time.perf_counter() - began
    spent: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for event in record.events() or ():
        mine = event.self_device_time_total if cuda else event.self_cpu_time_total
        if cuda and not event.kernels:  # times of kernels are told by the operators that launched them
            continue
        names, above = [event.name], event.cpu_parent
        while above is not None:
            names.append(above.name)
            above = above.cpu_parent
        spent[part_of(names)] += mine / 1e6
    total = sum(spent.values())
    found: dict[str, Any] = {"cell_s": wall, **{f"share_{name}": spent[name] / total for name in PARTS}}
    if cuda:
        found["launch_gaps"] = max(0.0, 1 - total / wall)
    return found


def run_cell(job: dict[str, Any]) -> dict[str, Any]:
    """The job `cell`: seconds against the bare products."""
    return against_products(_cell_of(job), job["times"])


def run_profile(job: dict[str, Any]) -> dict[str, Any]:
    """The job `profile`: where the time of one cell goes."""
    return shares(_cell_of(job), torch.device(job["device"]))


def _cell_of(job: dict[str, Any]) -> Callable[[], object]:
    device, dtype = torch.device(job["device"]), getattr(torch, job["dtype"])
    grid = GRID
    sizes = MID
    if job["shape"] != "mid":
        grid, sizes = Grid(*(int(side) // 8 for side in job["size"].split("*"))), keywords(job["shape"])
    if job.get("layers"):  # its stand-ins are as large as the model itself: a few layers tell the same ratio
        kept = [layer for layer in sizes["audio_inject_layers"] if layer < job["layers"]]
        sizes = sizes | {"num_layers": job["layers"], "audio_inject_layers": kept}
    return make_cell(dtype, device, sizes, grid)
