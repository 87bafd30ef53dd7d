"""What a row is read from: clocks, the three truths about memory, a true cap, and the copies that a trace holds."""

from __future__ import annotations

import json
import resource
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from liveavatar.memory.readings import status

GIB = 2**30
EVERY_S = 0.005


def settle(device: torch.device) -> None:
    """Wait for what was submitted."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PassClock:
    """Times each pass over the units, by events on a GPU, so that the host waits for nothing."""

    def __init__(self, dit: nn.Module, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self.passes: list[tuple[Any, Any, int]] = []
        self._hooks = [dit.register_forward_pre_hook(self._begin), dit.register_forward_hook(self._end)]

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _begin(self, dit: nn.Module, given: Any) -> None:
        cells = sum(not state.is_sink for state in given[0])
        self.passes.append((self._now(), None, cells))

    def _end(self, dit: nn.Module, given: Any, passed: Any) -> None:
        began, _, cells = self.passes[-1]
        self.passes[-1] = began, self._now(), cells

    def seconds(self, since: int = 0) -> list[float]:
        """Seconds of a cell in each pass, the first `since` passes left out."""
        settle(self.device)
        return [self._between(a, b) / max(1, cells) for a, b, cells in self.passes[since:] if b is not None]

    def ticks(self, since: int = 0) -> list[float]:
        """Seconds from the beginning of a pass to that of the next, all that lies between included."""
        settle(self.device)
        starts = [began for began, _, _ in self.passes[since:]]
        return [self._between(a, b) for a, b in pairwise(starts)]

    def _between(self, a: Any, b: Any) -> float:
        return a.elapsed_time(b) / 1e3 if self.cuda else b - a

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


class CardClock:
    """The most that the card itself says is in use, read every 5 ms: context, libraries and fragments included."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.most = device, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="card")
        if device.type == "cuda":
            self._thread.start()

    def look(self) -> int:
        free, total = torch.cuda.mem_get_info(self.device)
        self.most = max(self.most, total - free)
        return total - free

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_S):
            self.look()

    def close(self) -> int:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
            self.look()
        return self.most


def cap(device: torch.device, gib: float | None) -> dict[str, float]:
    """Let this process use no more than `gib` in all, whatever the card has.

    On a GPU, the allocator is left what remains beside the context and what libraries took in a first use of each; on
    a CPU, this is room to map beyond what the process has. Returns what was measured for it.
    """
    if device.type != "cuda":
        if gib is not None:
            room = int((status("VmSize") or 0) + gib * GIB)
            resource.setrlimit(resource.RLIMIT_AS, (room, resource.getrlimit(resource.RLIMIT_AS)[1]))
        return {}
    x = torch.randn(256, 256, device=device, dtype=torch.bfloat16)
    heads = x.view(1, 8, 64, 128)
    torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
    torch.nn.functional.conv3d(x.view(1, 1, 16, 64, 64), x.view(-1)[:27].view(1, 1, 3, 3, 3))
    (x @ x).sum().item()
    free, total = torch.cuda.mem_get_info(device)
    context = total - free - torch.cuda.memory_reserved(device)
    if gib is None:
        return {"context_bytes": context, "card_bytes": total}
    fraction = (gib * GIB - context) / total
    if fraction <= 0:
        raise ValueError(f"cap_gib={gib} leaves nothing beside the {context / GIB:.2f} GiB of context and libraries")
    torch.cuda.set_per_process_memory_fraction(min(1.0, fraction), device)
    return {"context_bytes": context, "card_bytes": total, "alloc_fraction": fraction}


def memory(device: torch.device) -> dict[str, float]:
    """Peaks of this process so far: what was needed, what the allocator held for it, and host memory."""
    found: dict[str, float] = {"host_peak_bytes": status("VmHWM") or 0}
    if device.type == "cuda":
        stats = torch.cuda.memory_stats(device)
        found |= {
            "peak_allocated_bytes": stats["allocated_bytes.all.peak"],
            "peak_reserved_bytes": stats["reserved_bytes.all.peak"],
            "alloc_retries": stats["num_alloc_retries"],
        }
        pinned = torch.cuda.host_memory_stats()  # its blocks come in powers of two
        if "allocated_bytes.peak" in pinned:
            found["pinned_bytes"] = pinned["allocated_bytes.peak"]
    return found


@dataclass(frozen=True)
class Trace:
    """Sums over a profiled stretch: bytes copied each way, and seconds in which the engines had work."""

    to_device: int
    from_device: int
    copying_s: float
    computing_s: float
    kernels: int

    @classmethod
    def read(cls, path: Path) -> Trace:
        return cls.of(json.loads(path.read_text())["traceEvents"])

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> Trace:
        """From the events of a Chrome trace, microseconds. Copies and kernels each run in streams that overlap: a
        moment with two at once counts once."""
        copies, kernels = [], []
        moved = {"HtoD": 0, "DtoH": 0}
        for event in events:
            kind = event.get("cat")
            span = (event.get("ts", 0.0), event.get("ts", 0.0) + event.get("dur", 0.0))
            if kind == "kernel":
                kernels.append(span)
            if kind != "gpu_memcpy":
                continue
            way = next((way for way in moved if way in event["name"]), None)
            if way is not None:
                moved[way] += int(event.get("args", {}).get("bytes", 0))
                copies.append(span)
        return cls(moved["HtoD"], moved["DtoH"], union(copies) / 1e6, union(kernels) / 1e6, len(kernels))


def union(spans: Sequence[tuple[float, float]]) -> float:
    """The length of what at least one span covers."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def percentile(values: Sequence[float], share: float) -> float:
    """By linear interpolation between the nearest two."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
