"""One stage of a pipeline by itself, with the hop of hidden states that comes before it and goes after it."""

from __future__ import annotations

import torch
from torch import Tensor

from liveavatar.benching.shapes import draw
from liveavatar.models.dit.state import CellState
from liveavatar.sampling.lattice import Cell
from liveavatar.sampling.relay import Course, LocalRelay, Wire
from liveavatar.sampling.stages import StageTable
from liveavatar.strategies.base import Traffic
from liveavatar.strategies.mail import layout


class StageAlone(LocalRelay):
    """Cells of one stage, in the order of the stream: what the stage before would send comes from host memory
    (page-locked beside a GPU), as between cards that do not reach one another, and what is sent goes back there."""

    def __init__(self, steps: int, table: StageTable, rank: int, traffic: Traffic) -> None:
        super().__init__(steps)
        path = table.paths[0]
        self.first, self.last = path[0] == rank, path[-1] == rank
        self.traffic = traffic
        self._given: dict[str, Tensor] = {}
        self._sent: dict[str, Tensor] = {}

    def open(self, wire: Wire, course: Course) -> None:
        super().open(wire, course)
        pinned = wire.device.type == "cuda"
        parts = layout(wire, "cell")
        for number, (name, shape, dtype) in enumerate(parts):
            room = draw(500 + number, *shape).to(dtype)
            self._given[name] = room.pin_memory() if pinned else room
            self._sent[name] = torch.empty(shape, dtype=dtype, pin_memory=pinned)
        self._text = draw(600, 1, wire.words, wire.dim).to(wire.device, wire.dtype)
        self._device = wire.device

    def finishes(self, step: int) -> bool:
        return self.last

    def receive(self, cell: Cell, states: list[CellState]) -> None:
        if self.first:
            return
        for state in states:
            state.text = self._text
            for name, room in self._given.items():
                setattr(state, name, room.to(self._device, non_blocking=True, copy=True))
                self.traffic.received += room.nbytes

    def send(self, cell: Cell, states: list[CellState]) -> None:
        if self.last:
            return
        for state in states:
            for name, room in self._sent.items():
                value = getattr(state, name)
                assert isinstance(value, Tensor)
                room.copy_(value.expand(room.shape), non_blocking=True)
                self.traffic.sent += room.nbytes
