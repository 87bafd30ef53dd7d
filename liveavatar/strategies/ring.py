"""A ring of slots through which units pass: fetched ahead, lent for one use, and let go.

Slots are allocated once, each as large as the largest unit. While a unit computes, the next ones are already on their
way into the other slots. On CUDA, copies run on a stream of their own and are ordered against the computation by
events alone, so the host never waits; on CPU the transport's own handle is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from liveavatar.checkpoint.slab import SlabLayout, allocate, point

POISON = 0xFF
"""A byte that makes every floating-point number of a freed slot a NaN."""

Wait = Callable[[], object]
"""Ends a fetch: returns once the bytes may be read by work submitted afterwards."""


class Fetch(Protocol):
    """Brings a unit's slab into a slot, in place; may return before it has arrived."""

    def __call__(self, name: str, slot: Tensor) -> Wait: ...


@dataclass
class _Slot:
    room: Tensor
    unit: str | None = None
    wait: Wait | None = None
    generation: int = 0  # counts the units that have passed through


class Lane:
    """The side stream of a CUDA device and its events; on a CPU, nothing."""

    def __init__(self, device: torch.device, slots: int) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.ready = [torch.cuda.Event() for _ in range(slots)] if self.stream else []
        self.free = [torch.cuda.Event() for _ in range(slots)] if self.stream else []
        if self.stream is not None:  # the rooms were made on the computing stream
            self.stream.wait_stream(torch.cuda.current_stream(device))

    def send(self, slot: int, fetch: Callable[[], Wait]) -> Wait:
        """Start a fetch into a slot whose last use has been submitted."""
        if self.stream is None:
            return fetch()
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(self.free[slot])
            fetch()()  # waits on the stream, not on the host
            self.ready[slot].record(self.stream)
        return lambda: torch.cuda.current_stream().wait_event(self.ready[slot])

    def take(self, store: Callable[[], None]) -> None:
        """Carry something away from the device, after what has been submitted so far, and before any later fetch."""
        if self.stream is None:
            store()
            return
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(done)
            store()

    def let_go(self, slot: int) -> None:
        if self.stream is not None:
            self.free[slot].record(torch.cuda.current_stream())


class SlabRing:
    """Residency of units in `slots` preallocated rooms (the model's `Residency`).

    A pass announces its units; the ring keeps up to `slots` - 1 of the coming ones on their way and, near the end of
    a pass, starts on the next one, which begins as was said or else like this one. A unit may be a part of one, as its
    layout says: each has a name and a slab of its own, and only the parameters in it are lent. Units that are not among
    `units` rest elsewhere for good, and pass by. With `checked`, a slot is filled with NaNs when its unit is let go,
    and a slot that was filled anew while it was lent is an error: slower, for finding mistakes.
    """

    def __init__(
        self,
        units: Mapping[str, nn.Module],
        layouts: Mapping[str, SlabLayout],
        fetch: Fetch,
        slots: int,
        device: torch.device,
        checked: bool = False,
    ) -> None:
        self.checked = checked
        self.units, self.fetch, self.layouts = units, fetch, layouts
        largest = max(layout.nbytes for layout in layouts.values())
        self.slots = [_Slot(allocate(largest, device)) for _ in range(slots)]
        self.lane = Lane(device, slots)
        self._views: dict[tuple[str, int], dict[str, Tensor]] = {}
        self._absent = {
            name: {p: q.data for p, q in unit.named_parameters() if p in layouts[name].entries}
            for name, unit in units.items()
        }
        self._order: list[str] = []
        self._then: list[str] = []
        self._next = 0
        self.discarded = 0  # fetches that the following pass turned out not to need

    @property
    def nbytes(self) -> int:
        return sum(slot.room.nbytes for slot in self.slots)

    def begin(self, names: Sequence[str], then: Sequence[str] | None = None) -> None:
        """A pass over `names`, in order, is about to start; the one after it begins with `then` (None: like this)."""
        self._order, self._next = [name for name in names if name in self.units], 0
        self._then = self._order if then is None else [name for name in then if name in self.units]
        wanted = set(self._ahead())
        for slot in self.slots:
            if slot.unit is not None and slot.unit not in wanted:
                self._finish(slot)
                slot.unit = None
                self.discarded += 1
        self._prefetch()

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Lend a unit: its parameters are views of a slot inside the block, and empty outside."""
        if name not in self.units:
            yield
            return
        due = self._order[self._next] if self._next < len(self._order) else None
        if name != due:
            expected = f"the pass announced {due!r}" if due else "no pass announced it"
            raise RuntimeError(f"unit {name!r} was entered out of turn: {expected}")
        self._prefetch()  # nothing to do, except where a pass is so short that the unit was in use until now
        index = self._slot_of(name)
        slot = self.slots[index]
        self._finish(slot)
        point(self.units[name], self._views_in(name, index))
        self._next += 1
        self._prefetch(held=name)
        generation = slot.generation
        try:
            yield
        finally:
            if self.checked and slot.generation != generation:
                raise RuntimeError(f"the slot of {name!r} was filled with {slot.unit!r} while it was lent")
            if self.checked:
                slot.room.fill_(POISON)
            self.lane.let_go(index)
            point(self.units[name], self._absent[name])
            slot.unit = None

    def close(self) -> None:
        """Wait for what is still on its way, so that nothing writes into memory that is given back.

        What does not arrive any more has been told where it was needed, or was not needed.
        """
        for slot in self.slots:
            with suppress(ConnectionError, ValueError):  # a rank or a disk has gone
                self._finish(slot)
            slot.unit = None

    def _ahead(self) -> list[str]:
        """The units to be held next, as many as there are slots."""
        coming = self._order[self._next :] + self._then
        return coming[: len(self.slots)]

    def _prefetch(self, held: str | None = None) -> None:
        room = len(self.slots) - (held is not None)
        for name in self._ahead()[:room]:
            if any(slot.unit == name for slot in self.slots):
                continue
            index = next((i for i, slot in enumerate(self.slots) if slot.unit is None), None)
            if index is None:
                return
            slot = self.slots[index]
            room_for_unit = slot.room[: self.layouts[name].nbytes]
            slot.unit, slot.generation = name, slot.generation + 1
            slot.wait = self.lane.send(index, lambda n=name, r=room_for_unit: self.fetch(n, r))

    def _slot_of(self, name: str) -> int:
        return next(i for i, slot in enumerate(self.slots) if slot.unit == name)

    def _views_in(self, name: str, index: int) -> dict[str, Tensor]:
        if (name, index) not in self._views:
            self._views[name, index] = self.layouts[name].views(self.slots[index].room)
        return self._views[name, index]

    @staticmethod
    def _finish(slot: _Slot) -> None:
        wait, slot.wait = slot.wait, None
        if wait is not None:
            wait()
