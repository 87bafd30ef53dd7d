"""Stage tables and their ticks: all work is done once, in time, by one rank at a time, and the ranks are kept busy."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import combinations, islice, pairwise

import pytest

from liveavatar.sampling.balance import split
from liveavatar.sampling.lattice import Cell
from liveavatar.sampling.stages import (
    Stage,
    StageTable,
    Tick,
    grid_table,
    layer_table,
    occupancy,
    step_table,
    ticks,
)

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
        ([Stage(range(4), range(0))], r"rank 0 of the stage table.*needs both"),
        ([Stage(range(5), range(3))], r"takes steps 0-4.*sampler\.steps=4 the steps are 0 to 3"),
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


@pytest.mark.parametrize("refresh", [None, 1, 4])
@pytest.mark.parametrize(("ranks", "groups"), [(3, 2), (4, 2), (5, 2), (7, 3)])
def test_ticks_walk_a_grid_too(ranks: int, groups: int, refresh: int | None) -> None:
    table, at = grid_table(ranks, 4, [1.0] * LAYERS, False, groups), None if refresh is None else FIRST + refresh
    check_ticks(table, list(ticks(table, FIRST, 9, at)), 9, at)


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


def counted(table: StageTable, blocks: int, refresh: int | None = None, cells: int = 1) -> tuple[int, float]:
    return occupancy(ticks(table, 0, blocks, refresh, cells), table_workers(table))


def table_workers(table: StageTable) -> int:
    return sum(stage.computes for stage in table.stages)


@pytest.mark.parametrize("blocks", [1, 2, 5, 11, 40, 101])
@pytest.mark.parametrize("steps", [1, 3, 4])
@pytest.mark.parametrize("ranks", range(1, 9))
def test_ticks_of_a_diagonal_are_those_of_the_closed_form(ranks: int, steps: int, blocks: int) -> None:
    """Blocks go in caravans of as many as there are ranks; filling and draining take as many ticks less one."""
    expected = -(-blocks // ranks) * steps * ranks + (blocks - 1) % ranks
    found, busy = counted(even(layer_table, ranks, steps), blocks)
    assert found == expected
    assert busy == pytest.approx(blocks * steps / expected)
    delay = max(0, steps * (ranks - 4)) + steps * (ranks - 1)  # block 4 waits for block 0; and one caravan is not full
    assert found <= counted(even(layer_table, ranks, steps), blocks, 4)[0] <= blocks * steps + delay


@pytest.mark.parametrize("blocks", [1, 2, 5, 11, 40])
@pytest.mark.parametrize("steps", [1, 3, 4])
@pytest.mark.parametrize("ranks", range(1, 9))
def test_ticks_of_a_timestep_pipeline_are_those_of_the_closed_form(ranks: int, steps: int, blocks: int) -> None:
    """The rank with most steps sets the pace; to that come filling and draining, and the wait for the refresh."""
    table = even(step_table, ranks, steps)
    pace, length = max(len(stage.steps) for stage in table.stages), sum(len(path) for path in table.paths)
    for refresh in (None, 4):
        wait = 0 if refresh is None or blocks <= refresh else max(0, length - refresh * pace)
        expected = (blocks - 1) * pace + length + wait
        found, busy = counted(table, blocks, refresh)
        assert found == expected
        assert busy == pytest.approx(blocks * length / (expected * ranks))


GRIDS = [(2, 2), (3, 2), (4, 2), (5, 2), (6, 2), (7, 2), (5, 3), (6, 3), (8, 3), (8, 4)]


@pytest.mark.parametrize("table", [
    *(even(make, ranks, 4) for make in (layer_table, step_table) for ranks in range(1, 9)),
    *(grid_table(ranks, 4, [1.0] * LAYERS, False, groups) for ranks, groups in GRIDS),
], ids=lambda table: "+".join(str(stage) for stage in table.stages))  # fmt: skip
def test_the_steady_state_is_as_busy_as_the_closed_form_says(table: StageTable) -> None:
    """From the refresh on, until the stream ends: whole rounds of a long stream, counted."""
    ranks, pace = table_workers(table), max(len(stage.steps) for stage in table.stages)
    taken = [len(tick) for tick in islice(ticks(table, 0, None, 4), 200 + 200 * pace * ranks)][200:]
    assert sum(taken) / (len(taken) * ranks) == pytest.approx(table.steady_utilisation, abs=0.002)


@pytest.mark.parametrize("ranks", range(1, 9))
def test_in_the_steady_state_no_rank_of_a_diagonal_waits(ranks: int) -> None:
    table = even(layer_table, ranks, 4)
    assert table.steady_utilisation == 1.0
    assert all(len(tick) == ranks for tick in list(islice(ticks(table, 0, None, 4), 400))[200:])
    assert all(even(step_table, among, 4).steady_utilisation == 1.0 for among in (1, 2, 4, 5, 8))
    assert even(step_table, 3, 4).steady_utilisation == pytest.approx(2 / 3)  # 2 steps, 1 and 1


@pytest.mark.parametrize("cells", [2, 4])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_take_several_cells_in_a_tick(ranks: int, cells: int) -> None:
    """One pass over a stage then serves several cells; nothing else about the schedule changes."""
    table = even(layer_table, ranks, 4)
    found = list(ticks(table, 0, 100, 4, cells))
    seen: set[tuple[int, int, int]] = set()
    for tick in found:
        for rank, (block, step) in tick:
            assert block == 0 or (rank, block - 1, step) in seen
            assert (rank, block, step - 1) in seen or step == 0
        assert max(Counter(rank for rank, _ in tick).values()) <= cells
        seen |= {(rank, *cell) for rank, cell in tick}
    assert len(seen) == 100 * 4 * ranks == sum(len(tick) for tick in found)
    passes = sum(len({rank for rank, _ in tick}) for tick in found)
    assert 100 * 4 * ranks / passes > 0.8 * cells


@pytest.mark.parametrize(("ranks", "groups", "expected"), [
    (4, 2, [(2, 4, 20, 40), (2, 4, 0, 20), (0, 2, 20, 40), (0, 2, 0, 20)]),
    (3, 2, [(2, 4, 0, 40), (0, 2, 20, 40), (0, 2, 0, 20)]),
    (1, 1, [(0, 4, 0, 40)]),
])  # fmt: skip
def test_a_grid_cuts_steps_and_layers(ranks: int, groups: int, expected: list[tuple[int, int, int, int]]) -> None:
    table = grid_table(ranks, 4, [1.0] * LAYERS, step_groups=groups)
    assert table.stages == tuple(Stage(range(a, b), range(c, d)) for a, b, c, d in expected)
    assert grid_table(ranks + 1, 4, [1.0] * LAYERS, True, groups).stages == (NOTHING, *table.stages)


@pytest.mark.parametrize("groups", [0, 3, 5])
def test_a_grid_of_more_groups_than_ranks_or_steps_is_refused(groups: int) -> None:
    ranks = 2 if groups < 5 else 8
    with pytest.raises(ValueError, match=rf"strategy\.step_groups={groups} cannot be.*allow 1 to {min(ranks, 4)}"):
        grid_table(ranks, 4, [1.0] * LAYERS, step_groups=groups)


def test_decoding_inline_leaves_its_rank_fewer_layers() -> None:
    costs = [1.0] * LAYERS
    plain, beside = layer_table(4, 4, costs, decode_cost=32.0), layer_table(5, 4, costs, True, decode_cost=32.0)
    assert [len(stage.layers) for stage in plain.stages] == [4, 12, 12, 12]  # 4 × 4 + 32 = 12 × 4
    assert [len(stage.layers) for stage in beside.stages] == [0, 10, 10, 10, 10]
    steps = step_table(3, 4, costs, decode_cost=40.0)
    assert [len(stage.steps) for stage in steps.stages] == [1, 1, 2]  # the last one decodes


def test_a_split_makes_the_dearest_part_as_cheap_as_can_be() -> None:
    chooser = random.Random(0)
    for _ in range(40):
        costs = [chooser.random() + 0.1 for _ in range(chooser.randint(3, 9))]
        parts = chooser.randint(1, 3)
        cuts = ([0, *inner, len(costs)] for inner in combinations(range(1, len(costs)), parts - 1))
        best = min(max(sum(costs[a:b]) for a, b in pairwise(cut)) for cut in cuts)
        assert max(sum(costs[i] for i in part) for part in split(costs, parts)) == pytest.approx(best)


def test_a_sink_prefill_rides_on_a_ranks_first_step_alone() -> None:
    table = even(step_table, 2, 4)  # rank 1: steps 0 and 1, rank 0: steps 2 and 3
    riding = [
        (rank, b, s) for rank in (0, 1) for b in range(6) for s in table.stages[rank].steps
        if table.prefills(rank, Cell(b, s), (0, 4))
    ]  # fmt: skip
    assert riding == [(0, 0, 2), (0, 4, 2), (1, 0, 0), (1, 4, 0)]
