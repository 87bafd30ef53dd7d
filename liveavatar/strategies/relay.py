"""The relay between ranks of a pipeline.

Nothing is negotiated: a receiver replays its sender's schedule and so knows which message comes next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate

from torch import Tensor

from liveavatar.models.dit.state import CellState
from liveavatar.sampling.lattice import Cell, Round
from liveavatar.sampling.relay import Course, Wire
from liveavatar.sampling.stages import StageTable, Tick, occupancy, ticks
from liveavatar.strategies.base import Traffic
from liveavatar.strategies.mail import Inbox, Message, Outbox, layout


class RankRelay:
    """A rank's place in a stage table (the rollout's `Relay`).

    `cells` is how many a rank takes in one pass. With `lock_step` a rank makes a pass in every tick, an empty one where
    it has no cell: ranks that gather weights from one another must do so equally often.
    """

    def __init__(self, table: StageTable, rank: int, traffic: Traffic, cells: int = 1, lock_step: bool = False) -> None:
        self.table, self.rank, self.traffic, self.cells, self.lock_step = table, rank, traffic, cells, lock_step
        self.stage = table.stages[rank]
        self.steps, self.computes = self.stage.steps, self.stage.computes
        self.course = Course(0, 0, None)
        self._text: Tensor | None = None

    def open(self, wire: Wire, course: Course) -> None:
        self.wire, self.course = wire, course
        self.sinks = [course.first] if course.begins else []
        self.sinks += [] if course.refresh is None else [course.refresh]
        self._inboxes: dict[int, Inbox] = {}
        self._outboxes: dict[int, Outbox] = {}
        for rank in range(len(self.table.stages)):
            if rank != self.rank and next(self._expected(rank, course_of(course, 2)), None) is not None:
                self._inboxes[rank] = Inbox(wire, rank, self._expected(rank, course), self.traffic)

    def rounds(self) -> Iterator[Round]:
        """This rank's cells in the order of the pipeline's ticks, those of a tick in one round."""
        for tick in self._ticks(self.course) if self.computes else ():
            cells = tuple(cell for rank, cell in tick if rank == self.rank)
            if cells or self.lock_step:
                yield cells
            for inbox in self._inboxes.values():
                inbox.recycle()

    def occupancy(self, blocks: int) -> tuple[int, float]:
        """The ticks of that many blocks, and the share of them in which computing ranks have work."""
        course = self.course
        return occupancy(
            ticks(self.table, course.first, blocks, course.refresh, self.cells),
            sum(stage.computes for stage in self.table.stages),
        )

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
                self._outbox(rank).put(message, {"latents": latents})

    def receive(self, cell: Cell, states: list[CellState]) -> None:
        path = self.table.paths[cell.step]
        here = path.index(self.rank)
        if here == 0:
            return
        for state in states:
            source, message = path[here - 1], Message("cell", cell)
            if state.is_sink:
                ahead = self.table.sink_source(self.rank)
                assert ahead is not None
                source, message = ahead, self._prefill(ahead, cell.block)
            for name, value in self._inboxes[source].get(message).items():
                setattr(state, name, value)
            if state.is_sink:
                assert state.text is not None
                self._text = state.text.clone()  # the prompt does not change: it travels with the sink alone
            state.text = self._text

    def send(self, cell: Cell, states: list[CellState]) -> None:
        path = self.table.paths[cell.step]
        for state in states:
            if state.is_sink:
                targets, message = self.table.sink_targets(self.rank), self._prefill(self.rank, cell.block)
            else:
                targets, message = path[path.index(self.rank) + 1 :][:1], Message("cell", cell)
            for rank in targets:
                parts = {name: getattr(state, name) for name, _, _ in layout(self.wire, message.kind)}
                self._outbox(rank).put(message, parts)

    def _prefill(self, rank: int, block: int) -> Message:
        """The sink prefill that a rank hands on: it rides with that rank's first step of the block."""
        return Message("sink", Cell(block, self.table.stages[rank].steps.start))

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
                yield cell.block, self._latents(self.table.last, cell)
                self._inboxes[self.table.last].recycle()

    def close(self) -> None:
        for outbox in self._outboxes.values():
            outbox.close()

    def _latents(self, source: int, cell: Cell) -> Tensor:
        return self._inboxes[source].get(Message("latents", cell))["latents"].clone()

    def _outbox(self, rank: int) -> Outbox:
        if rank not in self._outboxes:
            rooms = self._rooms_towards(rank, course_of(self.course, 8 * self.table.under_way(self.cells) + 16))
            self._outboxes[rank] = Outbox(self.wire, rank, self.traffic, rooms)
        return self._outboxes[rank]

    def _rooms_towards(self, rank: int, course: Course) -> dict[str, int]:
        """How many messages of a kind to that rank are under way at once, by the schedule itself.

        With fewer rooms a send would wait for what happens in a later tick, and ranks in lock-step for one another for
        ever. A message leaves when its receiver awaits it: when the one before it, or any later one, is read.
        """
        sent: list[tuple[int, Message]] = []
        taken: dict[Cell, int] = {}  # when the receiver takes a cell up
        for now, tick in enumerate(self._ticks(course)):
            taken |= {cell: now for worker, cell in tick if worker == rank}
            for cell in (cell for worker, cell in tick if worker == self.rank):
                sent += [(now, message) for to, message in self._sent(self.rank, cell, course) if to == rank]
        read = [
            now if not self.table.stages[rank].computes else self._due(rank, message, taken) for now, message in sent
        ]
        drained = list(accumulate(reversed(read), min))[::-1]
        left = [max(now, before) for (now, _), before in zip(sent, [0.0, *drained], strict=False)]
        most: dict[str, int] = {}
        for index, (now, message) in enumerate(sent):
            waiting = sum(sent[i][1].kind == message.kind and left[i] > now for i in range(index))
            most[message.kind] = max(most.get(message.kind, 2), waiting + 1)
        return most

    def _due(self, rank: int, message: Message, taken: dict[Cell, int]) -> float:
        """The tick in which a rank reads a message; never, if the stream ends before."""
        block, step = message.cell
        if message.kind == "sink":
            step = self.table.stages[rank].steps.start
        elif message.kind == "latents" and step + 1 < self.table.steps:
            step += 1
        elif message.kind == "latents":  # the first block, for the new sink
            block, step = self.course.refresh or 0, self.table.stages[rank].steps.start
        return taken.get(Cell(block, step), math.inf)

    def _ends(self, step: int) -> tuple[int, int]:
        """The ranks that need a step's latents: the first embeds them, the last moves them along."""
        return self.table.paths[step][0], self.table.paths[step][-1]

    def _cells(self, rank: int, course: Course) -> Iterator[Cell]:
        for tick in self._ticks(course):
            yield from (cell for worker, cell in tick if worker == rank)

    def _ticks(self, course: Course) -> Iterator[Tick]:
        return ticks(self.table, course.first, course.count, course.refresh, self.cells)

    def _expected(self, source: int, course: Course) -> Iterator[Message]:
        """All messages from another rank to this one, in the order in which it sends them."""
        for cell in self._cells(source, course):
            for rank, message in self._sent(source, cell, course):
                if rank == self.rank:
                    yield message

    def _sent(self, source: int, cell: Cell, course: Course) -> list[tuple[int, Message]]:
        """What a rank sends, and to whom, after its part of a cell."""
        path, sent = self.table.paths[cell.step], []
        if self.table.prefills(source, cell, self.sinks):
            sent = [(rank, Message("sink", cell)) for rank in self.table.sink_targets(source)]
        if source != path[-1]:
            return [*sent, (path[path.index(source) + 1], Message("cell", cell))]
        if cell.step + 1 < self.table.steps:
            targets = set(self._ends(cell.step + 1))
        else:
            targets = {self.table.shows}
            if course.begins and cell.block == course.first and course.refresh is not None:
                targets |= {rank for rank, stage in enumerate(self.table.stages) if stage.computes}
        return [(rank, Message("latents", cell)) for rank in sorted(targets - {source})]


def course_of(course: Course, blocks: int) -> Course:
    """The beginning of a course, of so many blocks at most: enough to see what comes again and again."""
    count = blocks if course.count is None else min(course.count, blocks)
    return Course(course.first, count, course.refresh, course.begins)
