"""The record over time: bounded for any length, and no peak is lost when it is thinned."""

from __future__ import annotations

import pytest

from liveavatar.memory.timeline import Point, Timeline


def _point(number: int, host: int, allocated: int | None = None, **held: tuple[int, int]) -> Point:
    return Point(number / 10, "steady", f"blocks.{number % 4}", number, host, allocated, None, None, held)


def test_everything_is_kept_while_there_is_room() -> None:
    timeline = Timeline(16)
    for number in range(15):
        timeline.add(_point(number, number))
    assert [point.host for point in timeline.whole()] == list(range(15))
    assert timeline.stride == 1


def test_an_endless_stream_takes_no_more_room_and_keeps_its_highest_point() -> None:
    timeline = Timeline(64)
    for number in range(20_000):
        timeline.add(_point(number, 10_000 if number == 7777 else number % 13))
    kept = timeline.whole()
    assert 32 <= len(kept) <= 65
    assert max(point.host for point in kept) == 10_000
    assert [p.seconds for p in kept] == sorted(p.seconds for p in kept)
    assert kept[-1].seconds > 1990  # to the end
    assert timeline.stride == 512


def test_a_table_has_columns_of_equal_length_and_none_that_are_empty() -> None:
    timeline = Timeline(16)
    timeline.add(_point(0, 5, weights=(3, 0)))
    timeline.add(_point(1, 6, allocated=9, weights=(3, 2), caches=(4, 0)))
    table = timeline.table()
    assert {len(column) for column in table.values()} == {2}
    assert table["device/caches"] == [0, 4]
    assert table["parked/weights"] == [0, 2]
    assert table["allocated"] == [None, 9]
    assert not {"parked/caches", "reserved", "driver"} & set(table)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match=r"profile\.points=3"):
        Timeline(3)
