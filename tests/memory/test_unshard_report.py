"""The published table of four ranks: what our arithmetic says of each of its figures."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from experiments.unshard_report import run as report

GIB = 2**30


def test_what_comes_at_unshard_is_all_that_lies_outside_the_blocks() -> None:
    assert report.outside() == 2_239_983_449
    assert round(report.parts()[report.ROOT] / GIB, 3) == 4.172
    assert round(report.parts()[report.ROOT] / GIB, 2) == report.UNSHARD


def test_what_is_there_after_loading_is_only_partly_accounted_for() -> None:
    sizes = {name: size / GIB for name, size in report.parts().items()}
    assert sizes[report.SHARD] == pytest.approx(16_295_755_609 * 2 / 4 / GIB)
    known = sum(sizes[name] for name in report.loaded())
    assert known == pytest.approx(18.99, abs=0.01)
    assert report.LOADED - known == pytest.approx(2.49, abs=0.01)
    assert round(report.LOADED + report.UNSHARD, 2) == report.PEAK


def test_the_nearest_sums_hold_the_root_once_already() -> None:
    (first, value), *others = report.near(report.LOADED)
    assert first == (report.SHARD, report.ROOT, report.RING)
    assert value == pytest.approx(21.43, abs=0.01)
    assert not others
    sister = report.near(report.SISTER)
    assert sister[0][0] == (report.SHARD, report.RING)
    assert len(sister) > 1  # so that no sum proves anything


def test_what_fits_instead_is_what_the_planner_says() -> None:
    told = report.needs()
    fits = {name for name, row in told.items() if row["fits"]}
    assert fits == {"diagonal_pipeline", "timestep_pipeline", "fsdp_stream", "hsdp_offload"}
    assert 32 <= max(told["reference_tpp"]["peak_gb"]) <= 36
    assert "`strategy.caches=host`" in report.table(told)


def test_the_table_that_is_committed_is_the_one_that_comes_out() -> None:
    with (Path(report.__file__).parent / "results.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == report.account()
