"""The relay between ranks of a pipeline.

Nothing is negotiated: a receiver replays its sender's schedule and so knows which message comes next.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from liveavatar.models.dit.state import CellState
from liveavatar.sampling.lattice import Cell, Round
from liveavatar.sampling.relay import Course, Wire
from liveavatar.sampling.stages import StageTable, ticks
from liveavatar.strategies.base import Traffic
from liveavatar.strategies.mail import Inbox, Message, Outbox, layout


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
                self._outbox(rank).put(message, {"latents": latents})

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
            outbox.put(Message(kind, cell), {name: getattr(state, name) for name, _, _ in layout(self.wire, kind)})

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
