"""Where a rank's cells come from and where they go: the only difference between topologies that the rollout sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from liveavatar.models.dit.state import CellState
from liveavatar.sampling.lattice import Cell, Round, sequential, wavefront


@dataclass(frozen=True)
class Wire:
    """Shapes of what travels between ranks for one stream."""

    latents: tuple[int, ...]  # [1, 16, f, h, w]
    tokens: int  # of a block
    sink_tokens: int
    frames: int
    dim: int
    words: int
    actors: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Course:
    """The stretch of a stream: its first block, how many blocks (None: no end), and the block that renews the sink.

    `begins` False: the stretch goes on with a stream that an earlier one has brought this far.
    """

    first: int
    count: int | None
    refresh: int | None
    begins: bool = True


class Relay(Protocol):
    """One rank's connection to the others, for one stream.

    `steps` are those that this rank takes. `incoming` and `outgoing` move latents between steps, `receive` and `send`
    the states of cells between layers, `shared` brings the first generated block to every rank (the one place where
    all stages meet), and `finished` brings finished blocks to a rank that only decodes. `occupancy` gives the ticks
    that so many blocks take in all, and the share of them in which the ranks that compute have work.
    """

    @property
    def steps(self) -> range: ...

    @property
    def computes(self) -> bool: ...

    def open(self, wire: Wire, course: Course) -> None: ...

    def rounds(self) -> Iterator[Round]: ...

    def occupancy(self, blocks: int) -> tuple[int, float]: ...

    def finishes(self, step: int) -> bool: ...

    def incoming(self, cell: Cell) -> Tensor | None: ...

    def outgoing(self, cell: Cell, latents: Tensor) -> None: ...

    def receive(self, cell: Cell, states: list[CellState]) -> None: ...

    def send(self, cell: Cell, states: list[CellState]) -> None: ...

    def shared(self) -> Tensor | None: ...

    def finished(self) -> Iterator[tuple[int, Tensor]]: ...

    def close(self) -> None: ...


class LocalRelay:
    """All cells are here: one device, or ranks that each compute the whole request."""

    computes = True

    def __init__(self, steps: int, cells_in_flight: int = 1) -> None:
        self.steps, self.cells_in_flight = range(steps), cells_in_flight
        self.course = Course(0, 0, None)

    def open(self, wire: Wire, course: Course) -> None:
        self.course = course

    def rounds(self) -> Iterator[Round]:
        return self._rounds(self.course.count)

    def _rounds(self, blocks: int | None) -> Iterator[Round]:
        course, steps = self.course, len(self.steps)
        if self.cells_in_flight == 1:
            return sequential(course.first, blocks, steps)
        return wavefront(course.first, blocks, steps, self.cells_in_flight, course.refresh)

    def occupancy(self, blocks: int) -> tuple[int, float]:
        return sum(1 for _ in self._rounds(blocks)), 1.0

    def finishes(self, step: int) -> bool:
        return True

    def incoming(self, cell: Cell) -> Tensor | None:
        return None

    def outgoing(self, cell: Cell, latents: Tensor) -> None:
        pass

    def receive(self, cell: Cell, states: list[CellState]) -> None:
        pass

    def send(self, cell: Cell, states: list[CellState]) -> None:
        pass

    def shared(self) -> Tensor | None:
        return None

    def finished(self) -> Iterator[tuple[int, Tensor]]:
        yield from ()

    def close(self) -> None:
        pass
