"""Cutting the lattice over ranks: who computes which steps with which layers, and in which order.

A stage is what one rank does. A cell of a step visits the stages of that step in the order of their layers; its latents
then go to the stages of the next step. Every rank can work out what every other rank does and when, so nothing has to
be negotiated: messages arrive in an order that the receiver knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from liveavatar.sampling.lattice import Cell


@dataclass(frozen=True)
class Stage:
    """The steps and transformer layers of one rank; or, with neither, the rank that decodes."""

    steps: range
    layers: range

    @property
    def computes(self) -> bool:
        return len(self.steps) > 0

    def __str__(self) -> str:
        return f"{_span(self.steps, 'step')} × {_span(self.layers, 'layer')}" if self.computes else "decodes"


def _span(numbers: range, word: str) -> str:
    return f"{word} {numbers.start}" if len(numbers) == 1 else f"{word}s {numbers.start}-{numbers.stop - 1}"


@dataclass(frozen=True)
class StageTable:
    """One stage per rank. Raises ValueError for a table that leaves work undone or does it twice."""

    stages: tuple[Stage, ...]
    steps: int
    layers: int

    def __post_init__(self) -> None:
        for step in range(self.steps):
            covered = [layer for rank in self.path(step) for layer in self.stages[rank].layers]
            if covered != list(range(self.layers)):
                raise ValueError(
                    f"the stage table covers layers {covered} at step {step}, instead of 0 to {self.layers - 1} once "
                    "each: every step needs ranks that hold all layers between them"
                )
        if sum(not stage.computes for stage in self.stages) > 1:
            raise ValueError("the stage table has more than one rank that only decodes: one is enough")

    def path(self, step: int) -> list[int]:
        """The ranks that a cell of this step visits, in order."""
        found = [rank for rank, stage in enumerate(self.stages) if step in stage.steps]
        return sorted(found, key=lambda rank: self.stages[rank].layers.start)

    @cached_property
    def paths(self) -> list[list[int]]:
        return [self.path(step) for step in range(self.steps)]

    @property
    def last(self) -> int:
        """The rank on which blocks are finished."""
        return self.paths[-1][-1]

    @property
    def shows(self) -> int:
        """The rank that decodes: one of its own, or else the one on which blocks are finished."""
        return next((rank for rank, stage in enumerate(self.stages) if not stage.computes), self.last)

    @property
    def in_flight(self) -> int:
        """Blocks under way at once: each computing rank is busy with one."""
        return sum(stage.computes for stage in self.stages)

    def prefills(self, rank: int, cell: Cell, sinks: Sequence[int]) -> bool:
        """Whether a sink prefill rides ahead of this cell: on a rank's first step of a block with a new sink."""
        return cell.block in sinks and cell.step == self.stages[rank].steps.start


def split(costs: Sequence[float], parts: int) -> list[range]:
    """Consecutive ranges of about equal cost, each with at least one member.

    Raises ValueError when there are more parts than members.
    """
    if parts > len(costs):
        raise ValueError(f"{len(costs)} layers cannot be divided among {parts} ranks: use at most {len(costs)}")
    total, bounds, spent = sum(costs), [0], 0.0
    for index, cost in enumerate(costs):
        left = parts - len(bounds)
        if left == 0:
            break
        share = total * len(bounds) / parts
        must = len(costs) - index == left  # the rest is needed, one for each part
        if index > bounds[-1] and (must or spent + cost / 2 >= share):
            bounds.append(index)
        spent += cost
    return [range(a, b) for a, b in zip(bounds, [*bounds[1:], len(costs)], strict=True)]


def step_table(ranks: int, steps: int, costs: Sequence[float], decode_rank: bool = False) -> StageTable:
    """Timestep pipeline: ranks take steps. With fewer ranks a rank takes several steps, with more they share layers.

    Rank 0 finishes the blocks or, with `decode_rank`, only decodes them: it is the one that writes the video.
    """
    workers = ranks - decode_rank
    if workers < 1:
        raise ValueError("parallel.decode=rank takes a rank of its own: use fabric.devices=2 or more")
    groups = split([1.0] * steps, min(workers, steps))
    stages: list[Stage] = []
    for number, group in enumerate(groups):
        sharing = workers // len(groups) + (number < workers % len(groups))
        stages += [Stage(group, layers) for layers in split(costs, sharing)]
    return _ordered(stages, steps, len(costs), decode_rank)


def layer_table(ranks: int, steps: int, costs: Sequence[float], decode_rank: bool = False) -> StageTable:
    """Diagonal pipeline: ranks take layers, with the caches of all steps for them."""
    workers = ranks - decode_rank
    if workers < 1:
        raise ValueError("parallel.decode=rank takes a rank of its own: use fabric.devices=2 or more")
    stages = [Stage(range(steps), layers) for layers in split(costs, workers)]
    return _ordered(stages, steps, len(costs), decode_rank)


def _ordered(stages: list[Stage], steps: int, layers: int, decode_rank: bool) -> StageTable:
    """Last stage first, so that rank 0 shows the result."""
    decode = [Stage(range(0), range(0))] if decode_rank else []
    return StageTable((*decode, *reversed(stages)), steps, layers)


Tick = list[tuple[int, Cell]]
"""What happens at once: which rank works on which cell."""


def ticks(table: StageTable, first: int, blocks: int | None, refresh: int | None = None) -> Iterator[Tick]:
    """The schedule of a pipeline, tick by tick: each rank takes the oldest block that waits for it.

    A block is taken up when a rank has nothing older to do and fewer blocks than computing ranks are under way: that
    is enough to keep all of them busy, and nothing can pile up before a slow one. Block `refresh` waits until block
    `first` is finished.
    """
    at: dict[int, tuple[int, int]] = {}  # per block: its step, and how far along that step's path
    upcoming, end = first, None if blocks is None else first + blocks
    while at or end is None or upcoming < end:
        waiting = dict(at)
        more = end is None or upcoming < end
        if more and len(at) < table.in_flight and not (upcoming == refresh and first in at):
            waiting[upcoming] = (0, 0)
        tick: Tick = []
        busy: set[int] = set()
        for block, place in sorted(waiting.items()):
            step, hop = place
            rank = table.paths[step][hop]
            if rank in busy or (block - 1 in at and at[block - 1] <= place):
                continue
            busy.add(rank)
            tick.append((rank, Cell(block, step)))
        yield tick
        for _, (block, step) in tick:
            hop = waiting[block][1]
            onward = (step, hop + 1) if hop + 1 < len(table.paths[step]) else (step + 1, 0)
            if onward[0] == table.steps:
                at.pop(block, None)  # not there yet, where its first cell is its last
            else:
                at[block] = onward
            upcoming = max(upcoming, block + 1)
