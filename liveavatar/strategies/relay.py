"""The relay between ranks of a pipeline: asynchronous point-to-point messages in rooms allocated once.

Nothing is negotiated: a receiver replays its sender's schedule and so knows which message comes next and how large it
is. One message per sender is always awaited ahead, so that it travels while the rank computes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from liveavatar.models.dit.state import CellState
from liveavatar.sampling.lattice import Cell, Round
from liveavatar.sampling.relay import Course, Wire
from liveavatar.sampling.stages import StageTable, ticks
from liveavatar.strategies.base import Traffic

Part = tuple[str, tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class Message:
    """What is sent and of which cell: `latents`, the hidden state of a `cell`, or that of a `sink` prefill."""

    kind: str
    cell: Cell


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

    def __init__(self, wire: Wire, rank: int, traffic: Traffic) -> None:
        self.rank, self.traffic, self.rooms = rank, traffic, Rooms(wire)
        self._leaving: dict[int, Any] = {}

    def put(self, kind: str, tensors: dict[str, Tensor]) -> None:
        room = self.rooms.next(kind)
        self._settle(room)
        for name, view in self.rooms.views(kind, room).items():
            view.copy_(tensors[name])
        self._leaving[room.data_ptr()] = dist.isend(room, self.rank)
        self.traffic.sent += room.nbytes

    def _settle(self, room: Tensor) -> None:
        work = self._leaving.pop(room.data_ptr(), None)
        if work is not None:
            work.wait()

    def close(self) -> None:
        for work in self._leaving.values():
            work.wait()
        self._leaving.clear()


class Inbox:
    """Messages from one rank, in the order in which that rank sends them."""

    def __init__(self, wire: Wire, rank: int, expected: Iterator[Message], traffic: Traffic) -> None:
        self.rank, self.expected, self.traffic, self.rooms = rank, expected, traffic, Rooms(wire)
        self._early: dict[Message, dict[str, Tensor]] = {}
        self._coming: tuple[Message, Tensor, Any] | None = None
        self._await_next()

    def get(self, message: Message) -> dict[str, Tensor]:
        """The tensors of a message; those that came before their time are kept until they are asked for."""
        while message not in self._early:
            if self._coming is None:
                raise RuntimeError(f"rank {self.rank} sends no {message}: the stage tables of the ranks differ")
            come, room, work = self._coming
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
        self._coming = (message, room, dist.irecv(room, self.rank))


class RankRelay:
    """A rank's place in a stage table (the rollout's `Relay`)."""

    def __init__(self, table: StageTable, rank: int, traffic: Traffic) -> None:
        self.table, self.rank, self.traffic = table, rank, traffic
        self.stage = table.stages[rank]
        self.steps, self.computes = self.stage.steps, self.stage.computes

    def open(self, wire: Wire, course: Course) -> None:
        self.wire, self.course = wire, course
        self.sinks = [course.first] if course.refresh is None else [course.first, course.refresh]
        self._inboxes: dict[int, Inbox] = {}
        self._outboxes: dict[int, Outbox] = {}
        self._text: Tensor | None = None
        for rank in range(len(self.table.stages)):
            if rank != self.rank and next(self._expected(rank, course_of_two(course)), None) is not None:
                self._inboxes[rank] = Inbox(wire, rank, self._expected(rank, course), self.traffic)

    def rounds(self) -> Iterator[Round]:
        """This rank's cells, one a round, in the order of the pipeline's ticks."""
        for cell in self._cells(self.rank, self.course):
            yield (cell,)

    def finishes(self, step: int) -> bool:
        return self.table.paths[step][-1] == self.rank

    def incoming(self, cell: Cell) -> Tensor | None:
        """Latents that the previous step left on another rank; None where they are here, or not needed."""
        if cell.step == 0 or self.rank not in self._ends(cell.step):
            return None
        source = self.table.paths[cell.step - 1][-1]
        if source == self.rank:
            return None
        return self._latents(source, Cell(cell.block, cell.step - 1))

    def outgoing(self, cell: Cell, latents: Tensor) -> None:
        for rank, message in self._sent(self.rank, cell, self.course):
            if message.kind == "latents":
                self._outbox(rank).put("latents", {"latents": latents})

    def receive(self, cell: Cell, states: list[CellState]) -> None:
        path = self.table.paths[cell.step]
        here = path.index(self.rank)
        if here == 0:
            return
        for state in states:
            kind = "sink" if state.is_sink else "cell"
            for name, value in self._inboxes[path[here - 1]].get(Message(kind, cell)).items():
                setattr(state, name, value)
            if state.is_sink:
                assert state.text is not None
                self._text = state.text.clone()  # the prompt does not change: it travels with the sink alone
            state.text = self._text

    def send(self, cell: Cell, states: list[CellState]) -> None:
        path = self.table.paths[cell.step]
        if self.rank == path[-1]:
            return
        outbox = self._outbox(path[path.index(self.rank) + 1])
        for state in states:
            kind = "sink" if state.is_sink else "cell"
            outbox.put(kind, {name: getattr(state, name) for name, _, _ in layout(self.wire, kind)})

    def shared(self) -> Tensor | None:
        """The first block, finished: from the rank that finishes blocks to all that compute."""
        source = self.table.last
        if source == self.rank:
            return None
        return self._latents(source, Cell(self.course.first, self.table.steps - 1))

    def finished(self) -> Iterator[tuple[int, Tensor]]:
        """Finished blocks, on the rank that only decodes; nothing on those that compute."""
        if self.computes:
            return
        for cell in self._cells(self.table.last, self.course):
            if cell.step == self.table.steps - 1:
                yield cell.block, self._latents(self.table.last, cell).clone()

    def close(self) -> None:
        for outbox in self._outboxes.values():
            outbox.close()

    def _latents(self, source: int, cell: Cell) -> Tensor:
        return self._inboxes[source].get(Message("latents", cell))["latents"].clone()

    def _outbox(self, rank: int) -> Outbox:
        if rank not in self._outboxes:
            self._outboxes[rank] = Outbox(self.wire, rank, self.traffic)
        return self._outboxes[rank]

    def _ends(self, step: int) -> tuple[int, int]:
        """The ranks that need a step's latents: the first embeds them, the last moves them along."""
        return self.table.paths[step][0], self.table.paths[step][-1]

    def _cells(self, rank: int, course: Course) -> Iterator[Cell]:
        for tick in ticks(self.table, course.first, course.count, course.refresh):
            yield from (cell for worker, cell in tick if worker == rank)

    def _expected(self, source: int, course: Course) -> Iterator[Message]:
        """All messages from another rank to this one, in the order in which it sends them."""
        for cell in self._cells(source, course):
            for rank, message in self._sent(source, cell, course):
                if rank == self.rank:
                    yield message

    def _sent(self, source: int, cell: Cell, course: Course) -> list[tuple[int, Message]]:
        """What a rank sends, and to whom, after its part of a cell."""
        path = self.table.paths[cell.step]
        if source != path[-1]:
            onward = path[path.index(source) + 1]
            carries = self.table.prefills(source, cell, self.sinks)
            return [(onward, Message("sink", cell))] * carries + [(onward, Message("cell", cell))]
        if cell.step + 1 < self.table.steps:
            targets = set(self._ends(cell.step + 1))
        else:
            targets = {self.table.shows}
            if cell.block == course.first and course.refresh is not None:
                targets |= {rank for rank, stage in enumerate(self.table.stages) if stage.computes}
        return [(rank, Message("latents", cell)) for rank in sorted(targets - {source})]


def course_of_two(course: Course) -> Course:
    """The beginning of a course: enough to see who sends to whom."""
    return Course(course.first, 2 if course.count is None else min(course.count, 2), course.refresh)
