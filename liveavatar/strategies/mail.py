"""Asynchronous point-to-point messages between ranks, in rooms allocated once.

A receiver knows which message comes next and how large it is. One message per sender is always awaited ahead, so that
it travels while the rank computes.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from liveavatar.sampling.lattice import Cell
from liveavatar.sampling.relay import Wire
from liveavatar.strategies.base import Traffic
from liveavatar.strategies.faults import naming

Part = tuple[str, tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class Message:
    """What is sent and of which cell: `latents`, the hidden state of a `cell`, or that of a `sink` prefill."""

    kind: str
    cell: Cell

    def __str__(self) -> str:
        what = "latents" if self.kind == "latents" else "hidden state"
        return f"{what} of block {self.cell.block}, step {self.cell.step}"


def layout(wire: Wire, kind: str) -> list[Part]:
    """The tensors of a message, in order."""
    if kind == "latents":
        return [("latents", wire.latents, wire.dtype)]
    tokens = wire.sink_tokens if kind == "sink" else wire.tokens
    parts: list[Part] = [
        ("x", (1, tokens, wire.dim), wire.dtype),
        ("time", (1, 1, wire.dim), torch.float32),
        ("modulation", (1, 1, 6, wire.dim), torch.float32),
    ]
    if kind == "sink":
        return [*parts, ("text", (1, wire.words, wire.dim), wire.dtype)]
    voice = (wire.actors, wire.frames, 5, wire.dim)
    tone = (wire.actors, wire.frames, wire.dim)
    return [*parts, ("voice", voice, torch.float32), ("tone", tone, torch.float32)]


def sizes(parts: list[Part]) -> list[int]:
    """Bytes of each part, rounded up so that the next one is aligned for any type."""
    return [-(-math.prod(shape) * dtype.itemsize // 16) * 16 for _, shape, dtype in parts]


class Rooms:
    """Rooms for messages by kind: made when all that there are are in use, and never given up."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._free: dict[str, list[Tensor]] = defaultdict(list)

    def take(self, kind: str) -> Tensor:
        if self._free[kind]:
            return self._free[kind].pop()
        return torch.empty(sum(sizes(layout(self.wire, kind))), dtype=torch.uint8, device=self.wire.device)

    def give(self, kind: str, room: Tensor) -> None:
        self._free[kind].append(room)

    def views(self, kind: str, room: Tensor) -> dict[str, Tensor]:
        parts = layout(self.wire, kind)
        found, start = {}, 0
        for (name, shape, dtype), size in zip(parts, sizes(parts), strict=True):
            flat = room[start : start + math.prod(shape) * dtype.itemsize]
            found[name] = flat.view(dtype).view(shape)
            start += size
        return found


class Outbox:
    """Messages to one rank, `most` of a kind under way at once: a room is filled again when its message has left."""

    def __init__(self, wire: Wire, rank: int, traffic: Traffic, most: Mapping[str, int]) -> None:
        self.rank, self.traffic, self.most = rank, traffic, most
        self.rooms = Rooms(wire)
        self._leaving: dict[str, deque[tuple[Message, Tensor, Any]]] = defaultdict(deque)

    def put(self, message: Message, tensors: dict[str, Tensor]) -> None:
        leaving = self._leaving[message.kind]
        if len(leaving) == self.most[message.kind]:
            self._settle(leaving)
        room = self.rooms.take(message.kind)
        for name, view in self.rooms.views(message.kind, room).items():
            view.copy_(tensors[name])
        with naming(f"giving it the {message}", self.rank):
            leaving.append((message, room, dist.isend(room, self.rank)))
        self.traffic.sent += room.nbytes

    def _settle(self, leaving: deque[tuple[Message, Tensor, Any]]) -> None:
        message, room, work = leaving.popleft()
        if work is not None:
            with naming(f"giving it the {message}", self.rank):
                work.wait()
        self.rooms.give(message.kind, room)

    def close(self) -> None:
        for leaving in self._leaving.values():
            while leaving:
                self._settle(leaving)


class Inbox:
    """Messages from one rank, in the order in which that rank sends them."""

    def __init__(self, wire: Wire, rank: int, expected: Iterator[Message], traffic: Traffic) -> None:
        self.rank, self.expected, self.traffic, self.rooms = rank, expected, traffic, Rooms(wire)
        self._early: dict[Message, Tensor] = {}
        self._lent: list[tuple[str, Tensor]] = []
        self._coming: tuple[Message, Tensor, Any] | None = None
        self._await_next()

    def get(self, message: Message) -> dict[str, Tensor]:
        """The tensors of a message, good until `recycle`; those that come before their time wait until they are due."""
        while message not in self._early:
            if self._coming is None:
                raise RuntimeError(f"rank {self.rank} sends no {message}: the stage tables of the ranks differ")
            come, room, work = self._coming
            with naming(f"waiting for the {come}", self.rank):
                work.wait()
            self.traffic.received += room.nbytes
            self._early[come] = room
            self._await_next()
        room = self._early.pop(message)
        self._lent.append((message.kind, room))
        return self.rooms.views(message.kind, room)

    def recycle(self) -> None:
        """What was got so far is not needed any more."""
        while self._lent:
            self.rooms.give(*self._lent.pop())

    def _await_next(self) -> None:
        message = next(self.expected, None)
        if message is None:
            self._coming = None
            return
        room = self.rooms.take(message.kind)
        with naming(f"waiting for the {message}", self.rank):
            self._coming = (message, room, dist.irecv(room, self.rank))
