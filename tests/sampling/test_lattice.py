"""Schedules: every cell once, never before what it needs, and no more under way than asked for."""

from itertools import islice

import pytest

from liveavatar.sampling.lattice import Cell, Round, sequential, wavefront


def test_the_sequential_order_is_block_after_block() -> None:
    assert list(sequential(5, 2, 3)) == [(Cell(b, s),) for b in (5, 6) for s in range(3)]
    endless = list(islice(sequential(10**9, None, 2), 2000))
    assert endless[-1] == (Cell(10**9 + 999, 1),)
    assert list(sequential(0, 0, 4)) == []


def respects_the_arrows(rounds: list[Round], first: int) -> bool:
    """Each cell comes in a later round than the same block's step before and the block before at the same step."""
    when = {cell: number for number, cells in enumerate(rounds) for cell in cells}
    for (block, step), number in when.items():
        needed = [Cell(block, step - 1)] if step else []
        needed += [Cell(block - 1, step)] if block > first else []
        if any(when.get(cell, number) >= number for cell in needed):
            return False
    return True


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("in_flight", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("refresh", [None, 1, 2, 4])
def test_a_wavefront_visits_every_cell_once_and_in_time(steps: int, in_flight: int, refresh: int | None) -> None:
    first, blocks = 7, 9
    at = None if refresh is None else first + refresh
    rounds = list(wavefront(first, blocks, steps, in_flight, at))
    visited = [cell for cells in rounds for cell in cells]
    assert sorted(visited) == [(b, s) for b in range(first, first + blocks) for s in range(steps)]
    assert respects_the_arrows(rounds, first)
    assert all(1 <= len(cells) <= min(in_flight, steps) for cells in rounds)
    ends = [cell.block for cell in visited if cell.step == steps - 1]
    assert ends == sorted(ends)
    if at is not None:
        place = {cell: number for number, cells in enumerate(rounds) for cell in cells}
        assert place[Cell(at, 0)] > place[Cell(first, steps - 1)]


def test_a_full_wavefront_takes_as_many_passes_as_blocks_and_steps_together() -> None:
    assert len(list(wavefront(0, 8, 4, 4))) == 8 + 4 - 1
    assert len(list(wavefront(0, 8, 4, 4, refresh=4))) == 8 + 4 - 1  # the refresh does not drain it
    assert len(list(wavefront(0, 8, 4, 1))) == 8 * 4


@pytest.mark.parametrize("in_flight", [1, 2, 3, 4])
def test_an_endless_wavefront_keeps_few_blocks_under_way(in_flight: int) -> None:
    started: set[int] = set()
    finished: set[int] = set()
    for cells in islice(wavefront(0, None, 4, in_flight, refresh=4), 500):
        started |= {cell.block for cell in cells}
        assert len(started - finished) <= in_flight
        finished |= {cell.block for cell in cells if cell.step == 3}
    assert len(finished) >= 500 * in_flight // 4 - 4


@pytest.mark.parametrize(("in_flight", "passes"), [(1, 44), (2, 24), (3, 17), (4, 14)])
def test_weights_pass_by_less_often_the_more_cells_share_them(in_flight: int, passes: int) -> None:
    assert len(list(wavefront(0, 11, 4, in_flight, refresh=4))) == passes


def test_over_a_long_stream_four_cells_in_flight_divide_the_passes_by_four() -> None:
    assert 4 * 1000 / len(list(wavefront(0, 1000, 4, 4, refresh=4))) > 3.98


@pytest.mark.parametrize("refresh", [None, 3, 6])
def test_one_cell_in_flight_is_the_sequential_order(refresh: int | None) -> None:
    assert list(wavefront(2, 7, 4, 1, refresh)) == list(sequential(2, 7, 4))
    assert list(islice(wavefront(2, None, 4, 1, refresh), 500)) == list(islice(sequential(2, None, 4), 500))


@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.parametrize("in_flight", [2, 3, 4])
def test_the_cells_of_a_round_are_an_antichain(steps: int, in_flight: int) -> None:
    """No cell of a round is at or past another's block and step: none can depend on another, near or far."""
    for cells in wavefront(0, 12, steps, in_flight, refresh=1):
        assert not any(a != b and a.block <= b.block and a.step <= b.step for a in cells for b in cells)
