"""Stage tables and their ticks: all work is done once, in time, by one rank at a time, and the ranks are kept busy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import islice

import pytest

from liveavatar.sampling.lattice import Cell
from liveavatar.sampling.stages import Stage, StageTable, Tick, layer_table, split, step_table, ticks

LAYERS = 40
FIRST = 5
NOTHING = Stage(range(0), range(0))

Maker = Callable[..., StageTable]


def even(make: Maker, ranks: int, steps: int, decode_rank: bool = False) -> StageTable:
    return make(ranks, steps, [1.0] * LAYERS, decode_rank)


@pytest.mark.parametrize("members", range(1, 13))
@pytest.mark.parametrize("parts", range(1, 9))
def test_a_split_is_a_partition_into_even_parts(members: int, parts: int) -> None:
    if parts > members:
        with pytest.raises(ValueError, match=f"{members} layers.*{parts} ranks.*at most {members}"):
            split([1.0] * members, parts)
        return
    ranges = split([1.0] * members, parts)
    assert [i for part in ranges for i in part] == list(range(members))
    sizes = [len(part) for part in ranges]
    assert len(sizes) == parts
    assert max(sizes) - min(sizes) <= 1


def test_a_split_follows_the_costs() -> None:
    assert split([4, 1, 1, 1, 1], 2) == [range(1), range(1, 5)]
    assert split([1, 1, 1, 1, 4], 2) == [range(4), range(4, 5)]
    assert split([1, 1, 100, 1], 4) == [range(i, i + 1) for i in range(4)]
    assert split([100, 1, 1], 3) == [range(i, i + 1) for i in range(3)]
    uneven = split([2, 1, 1, 2, 1, 1, 2, 1, 1, 2], 3)
    costs = [sum((2, 1, 1, 2, 1, 1, 2, 1, 1, 2)[i] for i in part) for part in uneven]
    assert max(costs) <= sum(costs) / 3 + 2  # no more than one member beyond an equal share


@pytest.mark.parametrize("decode_rank", [False, True])
@pytest.mark.parametrize("steps", range(1, 9))
@pytest.mark.parametrize("ranks", range(1, 9))
@pytest.mark.parametrize("make", [step_table, layer_table])
def test_every_number_of_ranks_takes_any_number_of_steps(
    make: Maker, ranks: int, steps: int, decode_rank: bool
) -> None:
    if decode_rank and ranks == 1:
        with pytest.raises(ValueError, match=r"parallel\.decode=rank.*fabric\.devices=2"):
            even(make, ranks, steps, decode_rank)
        return
    table = even(make, ranks, steps, decode_rank)
    work = [(s, layer) for stage in table.stages for s in stage.steps for layer in stage.layers]
    assert sorted(work) == [(s, layer) for s in range(steps) for layer in range(LAYERS)]
    assert len(table.stages) == ranks
    assert table.in_flight == ranks - decode_rank
    assert table.shows == 0
    assert table.last == (1 if decode_rank else 0)
    assert [stage.computes for stage in table.stages] == [not decode_rank] + [True] * (ranks - 1)
    shares = [len(stage.steps) * len(stage.layers) for stage in table.stages if stage.computes]
    if make is layer_table:
        assert max(shares) - min(shares) <= steps
        assert all(stage.steps == range(steps) for stage in table.stages if stage.computes)
    elif ranks - decode_rank <= steps:
        assert max(shares) - min(shares) <= LAYERS
        assert all(stage.layers == range(LAYERS) for stage in table.stages if stage.computes)
    else:  # every rank has one step at most, and layers are shared
        assert all(len(stage.steps) == 1 for stage in table.stages if stage.computes)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([Stage(range(4), range(2))], r"layers \[0, 1\] at step 0, instead of 0 to 2"),
        ([Stage(range(3), range(3))], r"layers \[\] at step 3"),
        ([Stage(range(4), range(2)), Stage(range(4), range(1, 3))], r"\[0, 1, 1, 2\].*once each"),
        ([Stage(range(4), range(3)), Stage(range(2), range(3))], r"at step 0.*once each"),
        ([Stage(range(1), range(3)), Stage(range(2, 4), range(3))], r"at step 1"),
        ([Stage(range(4), range(3)), NOTHING, NOTHING], r"more than one rank that only decodes"),
        ([NOTHING], r"at step 0"),
    ],
)
def test_a_table_that_cannot_work_is_refused_with_the_reason(stages: list[Stage], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StageTable(tuple(stages), steps=4, layers=3)


@pytest.mark.parametrize(("make", "ranks", "steps"), [(layer_table, 4, 4), (step_table, 4, 1), (step_table, 7, 2)])
def test_more_ranks_than_layers_are_refused(make: Maker, ranks: int, steps: int) -> None:
    with pytest.raises(ValueError, match=r"3 layers cannot be divided among 4 ranks: use at most 3"):
        make(ranks, steps, [1.0] * 3)


def check_ticks(table: StageTable, found: list[Tick], blocks: int, refresh: int | None) -> None:
    """All that a schedule owes: paths walked in order, one cell a rank and tick, caches filled in time."""
    visits: dict[int, list[tuple[int, int]]] = defaultdict(list)  # per block: (step, rank), in order
    moment: dict[tuple[int, int, int], int] = {}  # block, step, rank: the tick
    for now, tick in enumerate(found):
        assert tick, f"nothing happens in tick {now}: a deadlock"
        assert len({rank for rank, _ in tick}) == len(tick)
        assert len({cell.block for _, cell in tick}) == len(tick)
        for rank, (block, step) in tick:
            visits[block].append((step, rank))
            moment[block, step, rank] = now
    assert sorted(visits) == list(range(FIRST, FIRST + blocks))
    whole = [(step, rank) for step in range(table.steps) for rank in table.path(step)]
    assert all(visited == whole for visited in visits.values())
    for (block, step, rank), now in moment.items():
        assert block == FIRST or moment[block - 1, step, rank] < now
    last = (table.steps - 1, table.last)
    for now in range(len(found)):
        under_way = [b for b in visits if moment[b, *whole[0]] <= now <= moment[b, *last]]
        assert len(under_way) <= table.in_flight
    if refresh is not None and refresh in visits:
        assert moment[refresh, *whole[0]] > moment[FIRST, *last]


@pytest.mark.parametrize("refresh", [None, 1, 4])
@pytest.mark.parametrize("steps", range(1, 9))
@pytest.mark.parametrize("ranks", range(1, 9))
@pytest.mark.parametrize("make", [step_table, layer_table])
def test_ticks_walk_every_block_down_its_path_in_time(make: Maker, ranks: int, steps: int, refresh: int | None) -> None:
    table, at, blocks = even(make, ranks, steps), None if refresh is None else FIRST + refresh, 9
    check_ticks(table, list(ticks(table, FIRST, blocks, at)), blocks, at)


def test_a_decoding_rank_takes_no_cells_and_slows_nothing_down() -> None:
    for make in (step_table, layer_table):
        alone, beside = even(make, 4, 4), even(make, 5, 4, decode_rank=True)
        shifted = [[(rank - 1, cell) for rank, cell in tick] for tick in ticks(beside, 0, 9, 4)]
        assert shifted == list(ticks(alone, 0, 9, 4))


def test_one_rank_walks_in_the_order_of_the_reference() -> None:
    table = even(step_table, 1, 4)
    assert list(ticks(table, 0, 3, 1)) == [[(0, Cell(b, s))] for b in range(3) for s in range(4)]


def test_the_timestep_pipeline_is_a_staircase() -> None:
    table = even(step_table, 4, 4)
    found = list(ticks(table, 0, 11, 4))
    assert len(found) == 11 + 4 - 1
    for now, tick in enumerate(found):
        assert sorted(tick) == sorted((3 - s, Cell(now - s, s)) for s in range(4) if 0 <= now - s < 11)


def test_no_blocks_need_no_ticks() -> None:
    assert list(ticks(even(layer_table, 3, 4), 0, 0, 4)) == []


@pytest.mark.parametrize("refresh", [1, 4])
@pytest.mark.parametrize(("make", "ranks"), [(step_table, 3), (layer_table, 4), (step_table, 6)])
def test_an_endless_stream_is_scheduled_as_it_goes(make: Maker, ranks: int, refresh: int) -> None:
    table = even(make, ranks, 4)
    long, endless = ticks(table, FIRST, 1000, FIRST + refresh), ticks(table, FIRST, None, FIRST + refresh)
    assert list(islice(endless, 300)) == list(islice(long, 300))


def utilisation(table: StageTable, blocks: int, refresh: int = 4) -> float:
    found = list(ticks(table, 0, blocks, refresh))
    return sum(len(tick) for tick in found) / (len(found) * table.in_flight)


@pytest.mark.parametrize(("ranks", "expected"), [(1, 1.0), (2, 0.91), (3, 0.89), (4, 0.88), (5, 0.72)])
def test_a_diagonal_pipeline_keeps_its_ranks_busy(ranks: int, expected: float) -> None:
    table = even(layer_table, ranks, 4)
    assert utilisation(table, 11) >= expected
    assert utilisation(table, 200) >= 0.97
    assert utilisation(table, 200) > utilisation(table, 11) or ranks == 1


@pytest.mark.parametrize("ranks", range(1, 9))
def test_in_the_steady_state_no_rank_of_a_diagonal_waits(ranks: int) -> None:
    """From the refresh on, until the stream ends."""
    table = even(layer_table, ranks, 4)
    found = list(islice(ticks(table, 0, None, 4), 400))
    assert all(len(tick) == ranks for tick in found[200:])


def test_a_sink_prefill_rides_on_a_ranks_first_step_alone() -> None:
    table = even(step_table, 2, 4)  # rank 1: steps 0 and 1, rank 0: steps 2 and 3
    riding = [
        (rank, b, s) for rank in (0, 1) for b in range(6) for s in table.stages[rank].steps
        if table.prefills(rank, Cell(b, s), (0, 4))
    ]  # fmt: skip
    assert riding == [(0, 0, 2), (0, 4, 2), (1, 0, 0), (1, 4, 0)]
