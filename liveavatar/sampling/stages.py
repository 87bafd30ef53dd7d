"""Cutting the lattice over ranks: who computes which steps with which layers, and in which order.

A stage is what one rank does. A cell of a step visits the stages of that step in the order of their layers; its latents
then go to the stages of the next step. Every rank can work out what every other rank does and when, so nothing has to
be negotiated: messages arrive in an order that the receiver knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from liveavatar.sampling.balance import split
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
        for rank, stage in enumerate(self.stages):
            if stage.computes != (len(stage.layers) > 0):
                raise ValueError(f"rank {rank} of the stage table has {stage.layers} of {stage.steps}: it needs both")
            if stage.computes and (stage.steps.start < 0 or stage.steps.stop > self.steps):
                raise ValueError(
                    f"rank {rank} of the stage table takes {stage}, but with sampler.steps={self.steps} the steps are "
                    f"0 to {self.steps - 1}"
                )
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
        """Blocks under way at once."""
        return self.under_way(1)

    def under_way(self, cells: int) -> int:
        """Blocks under way at once where a rank takes up to `cells` of them in a pass, at different steps.

        One for each cell that can be worked on; two more where ranks take several steps over paths of different
        lengths, for there a rank would otherwise wait in every round.
        """
        taken = [min(cells, len(stage.steps)) for stage in self.stages]
        uneven = len({len(path) for path in self.paths}) > 1 and max(len(stage.steps) for stage in self.stages) > 1
        return sum(taken) + 2 * uneven

    def prefills(self, rank: int, cell: Cell, sinks: Sequence[int]) -> bool:
        """Whether a sink prefill rides ahead of this cell: on a rank's first step of a block with a new sink."""
        return cell.block in sinks and cell.step == self.stages[rank].steps.start

    def sink_source(self, rank: int) -> int | None:
        """The rank that hands a sink prefill on to this one: the one ahead of it at its first step, if any."""
        path = self.paths[self.stages[rank].steps.start]
        here = path.index(rank)
        return path[here - 1] if here else None

    def sink_targets(self, rank: int) -> list[int]:
        """The ranks to which this one hands a sink prefill on: several where later steps are cut in other places."""
        return [other for other, stage in enumerate(self.stages) if stage.computes and self.sink_source(other) == rank]

    @property
    def steady_utilisation(self) -> float:
        """The share of computing ranks that are busy while the pipeline is full.

        A rank takes as many cells of each block as it has steps; the one with most sets the pace.
        """
        taken = [len(stage.steps) for stage in self.stages if stage.computes]
        return sum(taken) / (max(taken) * len(taken))


def grid_table(
    ranks: int,
    steps: int,
    costs: Sequence[float],
    decode_rank: bool = False,
    step_groups: int = 1,
    decode_cost: float = 0.0,
) -> StageTable:
    """Step ranges × layer ranges: groups of ranks take consecutive steps, and the ranks of a group share the layers.

    `costs` are those of a layer in a cell; `decode_cost`, in the same unit, is what the decoding of a block adds to the
    rank that finishes it, unless a rank of its own does that. Rank 0 finishes the blocks or, with `decode_rank`, only
    decodes them: it is the one that writes the video. Raises ValueError for a grid that cannot work.
    """
    workers = ranks - decode_rank
    if workers < 1:
        raise ValueError("parallel.decode=rank takes a rank of its own: use fabric.devices=2 or more")
    if not 1 <= step_groups <= min(workers, steps):
        raise ValueError(
            f"strategy.step_groups={step_groups} cannot be: {workers} computing ranks and {steps} steps allow 1 to "
            f"{min(workers, steps)}"
        )
    extra = 0.0 if decode_rank else decode_cost
    groups = split([1.0] * (steps - 1) + [1.0 + extra / sum(costs)], step_groups)
    work = [len(group) + (extra / sum(costs)) * (group.stop == steps) for group in groups]
    sharing = [1] * step_groups
    for _ in range(workers - step_groups):
        neediest = max(range(step_groups), key=lambda group: work[group] / sharing[group])
        sharing[neediest] += 1
    stages: list[Stage] = []
    for group, members in zip(groups, sharing, strict=True):
        ending = extra / len(group) if group.stop == steps else 0.0
        stages += [Stage(group, layers) for layers in split([*costs[:-1], costs[-1] + ending], members)]
    return _ordered(stages, steps, len(costs), decode_rank)


def step_table(
    ranks: int, steps: int, costs: Sequence[float], decode_rank: bool = False, decode_cost: float = 0.0
) -> StageTable:
    """Timestep pipeline: ranks take steps. With fewer ranks a rank takes several steps, with more they share layers."""
    return grid_table(ranks, steps, costs, decode_rank, max(1, min(ranks - decode_rank, steps)), decode_cost)


def layer_table(
    ranks: int, steps: int, costs: Sequence[float], decode_rank: bool = False, decode_cost: float = 0.0
) -> StageTable:
    """Diagonal pipeline: ranks take layers, with the caches of all steps for them."""
    return grid_table(ranks, steps, costs, decode_rank, 1, decode_cost)


def _ordered(stages: list[Stage], steps: int, layers: int, decode_rank: bool) -> StageTable:
    """Last stage first, so that rank 0 shows the result."""
    decode = [Stage(range(0), range(0))] if decode_rank else []
    return StageTable((*decode, *reversed(stages)), steps, layers)


Tick = list[tuple[int, Cell]]
"""What happens at once: which rank works on which cell."""


def ticks(
    table: StageTable, first: int, blocks: int | None, refresh: int | None = None, cells: int = 1
) -> Iterator[Tick]:
    """The schedule of a pipeline, tick by tick: each rank takes the oldest blocks that wait for it, up to `cells`.

    A block is taken up when a rank has nothing older to do and fewer blocks than can be worked on are under way: that
    is enough to keep all of them busy, and nothing can pile up before a slow one. Block `refresh` waits until block
    `first` is finished.
    """
    at: dict[int, tuple[int, int]] = {}  # per block: its step, and how far along that step's path
    upcoming, end, most = first, None if blocks is None else first + blocks, table.under_way(cells)
    while at or end is None or upcoming < end:
        waiting = dict(at)
        more = end is None or upcoming < end
        if more and len(at) < most and not (upcoming == refresh and first in at):
            waiting[upcoming] = (0, 0)
        tick: Tick = []
        load: Counter[int] = Counter()
        for block, place in sorted(waiting.items()):
            step, hop = place
            rank = table.paths[step][hop]
            if load[rank] == cells or (block - 1 in at and at[block - 1] <= place):
                continue
            load[rank] += 1
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


def occupancy(schedule: Iterable[Tick], ranks: int) -> tuple[int, float]:
    """The ticks of a schedule, and the share of them in which `ranks` computing ranks have work.

    A tick in which some rank takes several cells lasts as long as they do.
    """
    count, lasted, worked = 0, 0, 0
    for tick in schedule:
        load = Counter(rank for rank, _ in tick)
        count, lasted, worked = count + 1, lasted + max(load.values()), worked + len(tick)
    return count, worked / (lasted * ranks) if lasted else 1.0
