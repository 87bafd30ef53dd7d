"""Asynchronous point-to-point messages between ranks, in rooms allocated once.

A receiver knows which message comes next and how large it is. One message per sender is always awaited ahead, so that
it travels while the rank computes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from liveavatar.sampling.lattice import Cell
from liveavatar.sampling.relay import Wire
from liveavatar.strategies.base import Traffic

Part = tuple[str, tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class Message:
    """What is sent and of which cell: `latents`, the hidden state of a `cell`, or that of a `sink` prefill."""

    kind: str
    cell: Cell

    def __str__(self) -> str:
        what = "latents" if self.kind == "latents" else "hidden state"
        return f"{what} of block {self.cell.block}, step {self.cell.step}"


@contextmanager
def _naming(peer: str, what: str) -> Iterator[None]:
    """A transport's failure as one that says who was waited for, and for what.

    Raises ConnectionError in its place.
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise ConnectionError(
            f"{peer} has ended or is too late ({what}); what was finished is in the file. The transport says: {reason}"
        ) from error


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
    """Two rooms for each kind of message, used in turn: one travels while the other is filled or read."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._rooms: dict[str, list[Tensor]] = {}
        self._turn: dict[str, int] = defaultdict(int)

    def next(self, kind: str) -> Tensor:
        if kind not in self._rooms:
            total = sum(sizes(layout(self.wire, kind)))
            device = self.wire.device
            self._rooms[kind] = [torch.empty(total, dtype=torch.uint8, device=device) for _ in range(2)]
        self._turn[kind] ^= 1
        return self._rooms[kind][self._turn[kind]]

    def views(self, kind: str, room: Tensor) -> dict[str, Tensor]:
        parts = layout(self.wire, kind)
        found, start = {}, 0
        for (name, shape, dtype), size in zip(parts, sizes(parts), strict=True):
            flat = room[start : start + math.prod(shape) * dtype.itemsize]
            found[name] = flat.view(dtype).view(shape)
            start += size
        return found


class Outbox:
    """Messages to one rank. A room is reused when the message that it held has left."""

    def __init__(self, wire: Wire, rank: int, peer: str, traffic: Traffic) -> None:
        self.rank, self.peer, self.traffic, self.rooms = rank, peer, traffic, Rooms(wire)
        self._leaving: dict[int, tuple[Message, Any]] = {}

    def put(self, message: Message, tensors: dict[str, Tensor]) -> None:
        room = self.rooms.next(message.kind)
        self._settle(id(room))
        for name, view in self.rooms.views(message.kind, room).items():
            view.copy_(tensors[name])
        with _naming(self.peer, f"it was to take the {message}"):
            self._leaving[id(room)] = message, dist.isend(room, self.rank)
        self.traffic.sent += room.nbytes

    def _settle(self, room: int) -> None:
        message, work = self._leaving.pop(room, (None, None))
        if work is not None:
            with _naming(self.peer, f"it was to take the {message}"):
                work.wait()

    def close(self) -> None:
        for room in list(self._leaving):
            self._settle(room)


class Inbox:
    """Messages from one rank, in the order in which that rank sends them."""

    def __init__(self, wire: Wire, rank: int, peer: str, expected: Iterator[Message], traffic: Traffic) -> None:
        self.rank, self.peer, self.expected, self.traffic, self.rooms = rank, peer, expected, traffic, Rooms(wire)
        self._early: dict[Message, dict[str, Tensor]] = {}
        self._coming: tuple[Message, Tensor, Any] | None = None
        self._await_next()

    def get(self, message: Message) -> dict[str, Tensor]:
        """The tensors of a message; those that came before their time are kept until they are asked for."""
        while message not in self._early:
            if self._coming is None:
                raise RuntimeError(f"rank {self.rank} sends no {message}: the stage tables of the ranks differ")
            come, room, work = self._coming
            with _naming(self.peer, f"it was to send the {come}"):
                work.wait()
            self.traffic.received += room.nbytes
            views = self.rooms.views(come.kind, room)
            self._await_next()
            if come == message:
                return views
            self._early[come] = {name: view.clone() for name, view in views.items()}
        return self._early.pop(message)

    def _await_next(self) -> None:
        message = next(self.expected, None)
        if message is None:
            self._coming = None
            return
        room = self.rooms.next(message.kind)
        with _naming(self.peer, f"it was to send the {message}"):
            self._coming = (message, room, dist.irecv(room, self.rank))
