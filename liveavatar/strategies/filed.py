"""Units read from the files of a streamable folder as they are due: nothing is copied before a run begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from liveavatar.checkpoint.files import TensorFile
from liveavatar.checkpoint.places import Place
from liveavatar.checkpoint.read import TensorSource
from liveavatar.checkpoint.slab import SlabLayout, allocate
from liveavatar.strategies.base import Traffic
from liveavatar.strategies.ring import Wait
from liveavatar.strategies.sources import arrived


class Filed(Protocol):
    """A source that knows where in which file each tensor lies (`checkpoint.streamable.Streamable`)."""

    def located(self, name: str, shape: torch.Size) -> tuple[TensorFile, Place]: ...


@dataclass(frozen=True)
class Run:
    """Bytes that lie one after another both in a file and in a slot."""

    file: TensorFile
    offset: int
    start: int
    nbytes: int


class FileSlabs:
    """Units read from the files of a streamable folder whenever they are due, ahead of the computation.

    Nothing is copied to begin with and nothing rests in this process: what the system has room for, it keeps by itself.
    A thread reads on the side; beside a GPU it fills page-locked staging, one for each slot of the ring.
    """

    def __init__(
        self, layouts: Mapping[str, SlabLayout], source: Filed, device: torch.device, traffic: Traffic, slots: int
    ) -> None:
        self.traffic = traffic
        self.runs = {name: list(_runs(name, layout, source)) for name, layout in layouts.items()}
        self.reader = ThreadPoolExecutor(1, "liveavatar-units")
        self.staging: list[Tensor] = []
        self.copied: list[torch.cuda.Event] = []
        self._turn = 0
        if device.type == "cuda":
            largest = max(layout.nbytes for layout in layouts.values())
            self.staging = [allocate(largest, torch.device("cpu"), pinned=True) for _ in range(slots)]
            self.copied = [torch.cuda.Event() for _ in range(slots)]

    def __call__(self, name: str, slot: Tensor) -> Wait:
        self.traffic.host += slot.nbytes
        self.traffic.fetches += 1
        if not self.staging:
            return self.reader.submit(self._read, name, slot).result
        turn, self._turn = self._turn, (self._turn + 1) % len(self.staging)
        staging, copied = self.staging[turn], self.copied[turn]
        copied.synchronize()  # its last use has left for the device
        self._read(name, staging)
        slot.copy_(staging[: slot.nbytes], non_blocking=True)
        copied.record()
        return arrived

    def close(self) -> None:
        self.reader.shutdown(wait=True, cancel_futures=True)

    def _read(self, name: str, room: Tensor) -> None:
        view = room.numpy().data
        for run in self.runs[name]:
            run.file.read_into(view[run.start : run.start + run.nbytes], run.offset)


def filed(source: TensorSource, layouts: Mapping[str, SlabLayout]) -> Filed | None:
    """The source, if its files hold what a slot wants as it wants it: a streamable folder of the same precision."""
    if not hasattr(source, "located"):
        return None
    candidate: Any = source
    for name, layout in layouts.items():
        for path, entry in layout.entries.items():
            _, place = candidate.located(f"{name.partition('/')[0]}.{path}", entry.shape)
            if place.dtype != entry.dtype:
                return None
    return candidate


def _runs(name: str, layout: SlabLayout, source: Filed) -> Iterator[Run]:
    """A unit's tensors in few reads: neighbours in the slot that are as far apart in the file are read together."""
    held: Run | None = None
    for path, entry in layout.entries.items():
        file, place = source.located(f"{name.partition('/')[0]}.{path}", entry.shape)
        if held is not None:
            end = entry.offset + entry.nbytes - held.start
            if held.file is file and place.offset - held.offset == entry.offset - held.start:
                held = replace(held, nbytes=end)
                continue
            yield held
        held = Run(file, place.offset, entry.offset, entry.nbytes)
    if held is not None:
        yield held
