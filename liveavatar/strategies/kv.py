"""Caches in host memory, streamed through a ring of scratch rooms on the device.

Four step caches of the 14B model weigh more than its weights. What a cell attends to has to be put together in one
contiguous room anyway: here that room is filled straight from host memory, the next one while this one is in use. Only
the tokens that a cell adds go back. The order of keys is that of resident caches, and so are the numbers.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from liveavatar.checkpoint.slab import allocate
from liveavatar.models.dit.cache import CacheShape, RingCache, Scratch, StreamCaches, StreamView, put, take
from liveavatar.strategies.base import Traffic
from liveavatar.strategies.ring import Lane, Wait
from liveavatar.strategies.sources import pin

SLOTS = 2


@dataclass(frozen=True)
class Need:
    """What one attention call takes from its ring: parts (from, to, how far to move), and where the new tokens go."""

    view: StreamView
    layer: int
    parts: tuple[tuple[int, int, int], ...]
    hole: slice
    end: int

    @classmethod
    def of(cls, view: StreamView, layer: int) -> Need:
        own = view.ring.place(view.frame, view.frames)
        parts, end, hole = [], view.sink.k.shape[2], slice(0, 0)
        for span in view.spans():
            move = end - span.start
            if span.start <= own.start < span.stop:
                hole = slice(own.start + move, own.stop + move)
                parts += [(span.start, own.start, move), (own.stop, span.stop, move)]
            else:
                parts.append((span.start, span.stop, move))
            end += span.stop - span.start
        return cls(view, layer, tuple(part for part in parts if part[0] < part[1]), hole, end)


class KvRing(Scratch):
    """Two rooms on the device through which the caches of all layers and steps pass.

    Caches of a small kind move as they rest: beside each room lies one for a layer of a ring as it came.
    """

    def __init__(self, shape: CacheShape, like: Tensor, traffic: Traffic) -> None:
        self.rooms = [Scratch(shape, like) for _ in range(SLOTS)]
        small = shape.kind is not None and shape.layers > 0
        self.arrivals = [shape.resting(shape.ring_tokens, like, 1) if small else [] for _ in range(SLOTS)]
        self.lane, self.traffic = Lane(like.device, SLOTS), traffic
        self._needs: list[Need] = []
        self._next = 0
        self._waits: list[Wait | None] = [None] * SLOTS

    @property
    def tensors(self) -> list[Tensor]:
        rooms = [tensor for room in self.rooms for tensor in room.tensors]
        return rooms + [tensor for rooms_of_slot in self.arrivals for tensor in rooms_of_slot]

    def begin(self, views: Sequence[StreamView], layers: range) -> None:
        """The order of a pass is layer by layer, and in each the cells in turn."""
        self._needs = [Need.of(view, layer) for layer in layers for view in views]
        self._next = 0
        for slot in range(SLOTS):
            self.lane.let_go(slot)
        self._prefetch(0)

    def assemble(self, view: StreamView, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        need = self._needs[self._next] if self._next < len(self._needs) else None
        if need is None or need.view is not view or need.layer != layer:
            due = "nothing" if need is None else f"layer {need.layer}"
            raise RuntimeError(f"the caches of layer {layer} were asked for out of turn: due is {due}")
        slot = self._next % SLOTS
        self._next += 1
        self.lane.let_go(self._next % SLOTS)  # the call before this one has been submitted, and was the last to use it
        self._prefetch(self._next)
        wait, self._waits[slot] = self._waits[slot], None
        if wait is not None:
            wait()
        room = self.rooms[slot]
        view.put_sink(layer, room.k, room.v)
        room.k[:, need.hole] = k
        room.v[:, need.hole] = v
        self.lane.take(lambda: self._store(need, slot))
        return room.k[:, : need.end], room.v[:, : need.end]

    def _prefetch(self, number: int) -> None:
        if number < len(self._needs):
            need, slot = self._needs[number], number % SLOTS
            self._waits[slot] = self.lane.send(slot, lambda: self._fetch(need, slot))

    def _fetch(self, need: Need, slot: int) -> Wait:
        ring, row, room = need.view.ring, need.view.ring.shape.row(need.layer), self.rooms[slot]
        for start, stop, move in need.parts:
            targets = [tensor[:, start + move : stop + move] for tensor in room.tensors]
            arriving = self._arriving(slot, slice(start, stop)) or targets
            for target, source in zip(arriving, ring.parts(row, slice(start, stop)), strict=True):
                target.copy_(source, non_blocking=True)
                self.traffic.caches_in += source.nbytes
            if arriving is not targets:
                take(arriving, *targets)
        return lambda: None

    def _store(self, need: Need, slot: int) -> None:
        ring, row, room = need.view.ring, need.view.ring.shape.row(need.layer), self.rooms[slot]
        place = ring.place(need.view.frame, need.view.frames)
        own = [tensor[:, need.hole] for tensor in room.tensors]
        leaving = self._arriving(slot, place)
        if leaving:
            put(leaving, *own)
        for target, source in zip(ring.parts(row, place), leaving or own, strict=True):
            target.copy_(source, non_blocking=True)
            self.traffic.caches_out += source.nbytes

    def _arriving(self, slot: int, place: slice) -> list[Tensor]:
        """Where tokens of a small kind lie on the device as they rest; nothing where they rest as they are used."""
        return [tensor[0, :, place] for tensor in self.arrivals[slot]]


class HostRooms:
    """Room for caches in host memory, kept from stream to stream: page-locking it anew takes seconds."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        self._free: list[Tensor] = []

    def take(self, nbytes: int, pinned: bool) -> Tensor:
        """Room of exactly that size; what is in it may be left from another stream."""
        for place, room in enumerate(self._free):
            if room.nbytes == nbytes:
                return self._free.pop(place)
        room = allocate(nbytes, torch.device("cpu"))
        if pinned:
            pin(room)
        self.traffic.parked += nbytes
        return room

    def give_back(self, rooms: Sequence[Tensor]) -> None:
        self._free += rooms


class HostCaches(StreamCaches):
    """Rings in host memory (page-locked beside a GPU), sink and rooms on the device."""

    def __init__(
        self,
        shape: CacheShape,
        steps: range,
        like: Tensor,
        origin: int,
        traffic: Traffic,
        rooms: HostRooms | None = None,
    ) -> None:
        self.traffic, self._host = traffic, rooms or HostRooms(traffic)
        super().__init__(shape, steps, like, origin)

    def _rooms(self, like: Tensor, origin: int) -> tuple[list[RingCache], Scratch]:
        taken: list[Tensor] = []
        rings = [_host_ring(self.shape, like, origin, self._host, taken) for _ in self.steps]
        weakref.finalize(self, self._host.give_back, taken)
        return rings, KvRing(self.shape, like, self.traffic)

    @property
    def nbytes(self) -> int:
        return self.sink.nbytes + self.scratch.nbytes

    def held(self) -> dict[str, tuple[int, int]]:
        found = super().held()
        device, host = found["caches"]
        return found | {"caches": (host, device)}


def _host_ring(shape: CacheShape, like: Tensor, origin: int, rooms: HostRooms, taken: list[Tensor]) -> RingCache:
    """A ring whose room has exactly the size it needs: PyTorch's own pinned memory comes in powers of two."""
    found = []
    for tensor in shape.resting(shape.ring_tokens, torch.empty(0, dtype=like.dtype, device="meta"), shape.layers):
        room = rooms.take(tensor.nbytes, like.device.type == "cuda")
        taken.append(room)
        found.append(room.view(tensor.dtype).view(tensor.shape))
    return RingCache(shape, like, origin, found)
