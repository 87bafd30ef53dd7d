"""Reading a device: what it has given out now, and the most since the last mark."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from liveavatar.memory.ledger import Ledger
from liveavatar.memory.probe import TensorWatch
from liveavatar.memory.readings import Resident


@dataclass(frozen=True, slots=True)
class Reading:
    """One moment, and the peaks since the reading before it. Bytes; None for what this device does not tell."""

    host: int
    allocated: int | None = None
    peak_allocated: int | None = None
    reserved: int | None = None
    peak_reserved: int | None = None
    driver: int | None = None


class Gauge(Protocol):
    """`read` begins new peaks, as `mark` does, and asks the driver too where that is wanted, which costs more.

    `glance` disturbs no peak. `following` counts tensors where the device does not do so itself.
    """

    def read(self, driver: bool = False) -> Reading: ...

    def glance(self) -> Reading: ...

    def mark(self) -> None: ...

    def following(self, key: str, size: int) -> AbstractContextManager[object]: ...

    def counters(self) -> dict[str, int]: ...

    def close(self) -> None: ...


def gauge_for(device: torch.device, ledger: Ledger) -> Gauge:
    return CudaGauge(device) if device.type == "cuda" else CpuGauge(ledger)


class CpuGauge:
    """The resident set, and while tensors are followed their bytes on top of what the ledger knows to rest."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self._resident = ledger, Resident()
        self._watch: TensorWatch | None = None
        self._largest: dict[str, int] = {}

    def read(self, driver: bool = False) -> Reading:
        host, watch = self._resident(), self._watch
        if watch is None:
            return Reading(host)
        resting = sum(device for device, _ in self.ledger.read().values())
        reading = Reading(host, resting + watch.live, resting + watch.peak)
        watch.mark()
        return reading

    def glance(self) -> Reading:
        return Reading(self._resident())

    def mark(self) -> None:
        if self._watch is not None:
            self._watch.mark()

    @contextmanager
    def following(self, key: str, size: int) -> Iterator[object]:
        """Once for each key, and again for anything larger."""
        if self._watch is not None or size <= self._largest.get(key, 0):
            yield None
            return
        self._largest[key] = size
        with TensorWatch() as self._watch:
            try:
                yield self._watch
            finally:
                self._watch = None

    def counters(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self._resident.close()


class CudaGauge:
    """The caching allocator's own account, and the driver's.

    The account is kept on the host in the order in which work is submitted, so nothing has to be waited for. `driver`
    counts the whole card: context, workspaces, communication buffers and other processes with it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device if device.index is not None else torch.device("cuda", torch.cuda.current_device())
        self._resident = Resident()
        self.mark()

    def read(self, driver: bool = False) -> Reading:
        stats: dict[str, Any] = torch.cuda.memory_stats_as_nested_dict(self.device)
        given = None
        if driver:
            free, total = torch.cuda.mem_get_info(self.device)
            given = total - free
        now, most = (
            [stats[kind]["all"][when] for kind in ("allocated_bytes", "reserved_bytes")] for when in ("current", "peak")
        )
        self.mark()
        return Reading(self._resident(), now[0], most[0], now[1], most[1], given)

    def glance(self) -> Reading:
        allocated, reserved = torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device)
        return Reading(self._resident(), allocated, None, reserved)

    def mark(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def following(self, key: str, size: int) -> AbstractContextManager[object]:
        return ExitStack()

    def counters(self) -> dict[str, int]:
        """How often the allocator had to give back its reserve and try again, and how often in vain."""
        stats = torch.cuda.memory_stats_as_nested_dict(self.device)
        return {"alloc_retries": stats["num_alloc_retries"], "ooms": stats["num_ooms"]}

    def close(self) -> None:
        self._resident.close()
