"""Relays of all ranks over a transport that never buffers: no table may wait in a circle, and nothing is mixed up.

A send is over when its receive is posted, as with the strictest transport. Ranks are threads; what they compute is a
number that says which cells have passed where, so that a room that is filled too early shows.
"""

from __future__ import annotations

import random
import threading
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from liveavatar.models.dit.state import CellState
from liveavatar.sampling.lattice import Cell
from liveavatar.sampling.relay import Course, Wire
from liveavatar.sampling.stages import Stage, StageTable, grid_table, layer_table, step_table
from liveavatar.strategies import mail
from liveavatar.strategies.base import Traffic
from liveavatar.strategies.relay import RankRelay

STEPS, LAYERS, BLOCKS, REFRESH = 4, 12, 10, 4
WIRE = Wire((1, 1, 1, 1, 1), 1, 1, 1, 1, 1, 1, torch.float32, torch.device("cpu"))
WAIT_S = 5.0


class Numbers(CellState):
    """A state whose tensors are single numbers."""

    def __init__(self, x: float, sink: bool = False) -> None:
        for name, shape, dtype in (*mail.layout(WIRE, "cell"), *mail.layout(WIRE, "sink")):
            setattr(self, name, torch.full(shape, x, dtype=dtype))
        self.sink = sink

    @property
    def is_sink(self) -> bool:
        return self.sink


@dataclass
class Transfer:
    room: Tensor
    done: threading.Event

    def wait(self) -> None:
        if not self.done.wait(WAIT_S):
            raise RuntimeError("nobody came")


class Transport:
    """`isend` and `irecv` between threads, in order, without a buffer."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self.lock, self.me = ranks, threading.Lock(), threading.local()
        self.sends: dict[tuple[int, int], deque[Transfer]] = defaultdict(deque)
        self.takes: dict[tuple[int, int], deque[Transfer]] = defaultdict(deque)

    def isend(self, room: Tensor, rank: int) -> Transfer:
        return self._meet(room, (self.me.rank, rank), self.sends)

    def irecv(self, room: Tensor, rank: int) -> Transfer:
        return self._meet(room, (rank, self.me.rank), self.takes)

    def _meet(self, room: Tensor, way: tuple[int, int], side: Any) -> Transfer:
        transfer = Transfer(room, threading.Event())
        with self.lock:
            side[way].append(transfer)
            while self.sends[way] and self.takes[way]:
                given, taken = self.sends[way].popleft(), self.takes[way].popleft()
                assert given.room.nbytes == taken.room.nbytes
                taken.room.copy_(given.room)
                given.done.set()
                taken.done.set()
        return transfer


def walk(table: StageTable, rank: int, cells: int, barrier: threading.Barrier | None, rooms: list[int]) -> None:
    """What the rollout does on a rank, with numbers for tensors: a state says its cell and how far it has come."""
    relay = RankRelay(table, rank, Traffic(), cells, barrier is not None)
    relay.open(WIRE, Course(0, BLOCKS, REFRESH))
    chooser, latents, seen = random.Random(rank), {}, set()
    shown = [(block, float(value)) for block, value in relay.finished()]
    for round_ in relay.rounds():
        if barrier is not None:
            barrier.wait(WAIT_S)
        taken = [_taken(relay, table, rank, cell, latents, seen) for cell in round_]
        if chooser.random() < 0.05:
            threading.Event().wait(0.001)
        for cell, states in zip(round_, taken, strict=True):
            for state in states:
                _check_and_compute(table, rank, cell, state)
            relay.send(cell, states)
            if relay.finishes(cell.step):
                latents[cell.block] += 1
                assert latents[cell.block] == 100 * cell.block + cell.step + 1
                relay.outgoing(cell, torch.full(WIRE.latents, latents[cell.block]))
                if cell.step == STEPS - 1:
                    shown.append((cell.block, latents[cell.block]))
    if rank in (table.last, table.shows):
        assert shown == [(block, 100 * block + STEPS) for block in range(BLOCKS)]
    relay.close()
    boxes = [*relay._inboxes.values(), *relay._outboxes.values()]
    rooms.append(sum(len(free) for box in boxes for free in box.rooms._free.values()))


def _taken(
    relay: RankRelay, table: StageTable, rank: int, cell: Cell, latents: dict[int, float], seen: set[int]
) -> list[CellState]:
    arrived = relay.incoming(cell)
    states: list[CellState] = []
    if cell.block not in seen:
        seen.add(cell.block)
        latents[cell.block] = 100.0 * cell.block
        if cell.block == REFRESH and table.last != rank:
            shared = relay.shared()
            assert shared is not None
            assert float(shared) == STEPS
        if cell.block in (0, REFRESH):
            states.append(Numbers(1000.0 * cell.block, sink=True))
    if arrived is not None:
        latents[cell.block] = float(arrived)
    states.append(Numbers(_code(cell)))
    relay.receive(cell, states)
    return states


def _code(cell: Cell) -> float:
    return 1000.0 * cell.block + 100 * cell.step


def _check_and_compute(table: StageTable, rank: int, cell: Cell, state: CellState) -> None:
    """A layer adds one to the state: it must come in with as many as lie before this stage."""
    layers, steps = table.stages[rank].layers, table.stages[rank].steps
    assert state.x is not None
    if state.is_sink:
        assert cell.step == steps.start
        assert float(state.x) % 100 == layers.start
        assert float(state.x) // 1000 == cell.block
    else:
        assert float(state.x) == _code(cell) + layers.start
    state.x = state.x + len(layers)


def run(monkeypatch: pytest.MonkeyPatch, table: StageTable, cells: int = 1, lock_step: bool = False) -> list[int]:
    """All ranks of a table; returns how many rooms each of them made."""
    transport, failures, rooms = Transport(len(table.stages)), [], []
    monkeypatch.setattr(mail, "dist", transport)
    barrier = threading.Barrier(sum(stage.computes for stage in table.stages)) if lock_step else None

    def of(rank: int) -> None:
        transport.me.rank = rank
        try:
            walk(table, rank, cells, barrier if table.stages[rank].computes else None, rooms)
        except BaseException as error:  # noqa: BLE001
            failures.append(f"rank {rank} ({table.stages[rank]}): {type(error).__name__}: {error}")

    threads = [threading.Thread(target=of, args=(rank,), daemon=True) for rank in range(len(table.stages))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * WAIT_S)
    assert not failures, f"{[str(stage) for stage in table.stages]}: {failures}"
    return rooms


def cut_at_random(seed: int) -> StageTable:
    """Any rectangles of steps × layers that fill the whole, in any order, perhaps with a rank that decodes."""
    chooser, parts = random.Random(seed), [(range(STEPS), range(LAYERS))]
    for _ in range(chooser.randint(1, 5)):
        steps, layers = parts.pop(chooser.randrange(len(parts)))
        if len(steps) > 1 and chooser.random() < 0.5:
            at = chooser.randrange(1, len(steps))
            parts += [(steps[:at], layers), (steps[at:], layers)]
        elif len(layers) > 1:
            at = chooser.randrange(1, len(layers))
            parts += [(steps, layers[:at]), (steps, layers[at:])]
        else:
            parts.append((steps, layers))
    chooser.shuffle(parts)
    decode = [Stage(range(0), range(0))] * chooser.randint(0, 1)
    return StageTable((*decode, *(Stage(*part) for part in parts)), STEPS, LAYERS)


ONE = [1.0] * LAYERS
TABLES = [
    make(ranks, STEPS, ONE, rank)
    for make in (step_table, layer_table)
    for ranks in (2, 3, 5, 7)
    for rank in (False, True)
]
TABLES += [grid_table(ranks, STEPS, ONE, False, groups) for ranks, groups in ((3, 2), (4, 2), (5, 2), (5, 3), (8, 4))]


@pytest.mark.parametrize(("cells", "lock_step"), [(1, False), (1, True), (2, False), (4, True)])
def test_no_table_waits_in_a_circle_or_mixes_up_cells(
    monkeypatch: pytest.MonkeyPatch, cells: int, lock_step: bool
) -> None:
    for table in [*TABLES, *(cut_at_random(seed) for seed in range(8))]:
        run(monkeypatch, table, cells, lock_step)
