"""Clocks, percentiles, and what is read from a trace of a card."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from liveavatar.benching.cell import part_of
from liveavatar.benching.gauges import PassClock, Trace, percentile, union
from liveavatar.benching.planned import resident_blocks
from liveavatar.benching.rows import GPU_CAP_GIB, gpu_rows
from liveavatar.benching.sizes import keywords


def test_overlapping_spans_count_once() -> None:
    assert union([]) == 0
    assert union([(5, 6), (0, 2), (1, 4), (1.5, 2)]) == 5


def test_percentiles_lie_between_values() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert (percentile([7.0], 0.05), percentile([1.0, 2.0], 1.0)) == (7.0, 2.0)


def test_a_trace_tells_copies_from_kernels() -> None:
    def event(kind: str, name: str, start: float, length: float, **args: Any) -> dict[str, Any]:
        return {"cat": kind, "name": name, "ts": start, "dur": length, "args": args}

    events = [
        event("kernel", "gemm", 0, 10e6),
        event("kernel", "attention", 5e6, 10e6),  # another stream, half of it at the same time
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 0, 4e6, bytes=1000),
        event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 8e6, 1e6, bytes=500),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 3e6, 2e6, bytes=70),
        event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 20e6, 2e6, bytes=9),
        event("cpu_op", "aten::mm", 0, 99e6),
        {"ph": "M", "name": "process_name"},
    ]
    trace = Trace.of(events)
    assert (trace.to_device, trace.from_device, trace.kernels) == (1500, 70, 2)
    assert trace.computing_s == 15
    assert trace.copying_s == 6


def test_a_pass_is_timed_by_the_cells_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("liveavatar.benching.gauges.time.perf_counter", lambda: now[0])

    class Model(nn.Module):
        def forward(self, states: list[Any]) -> None:
            now[0] += 6.0

    model = Model()
    clock = PassClock(model, torch.device("cpu"))
    cell, sink = SimpleNamespace(is_sink=False), SimpleNamespace(is_sink=True)
    model([cell, cell, sink])
    now[0] += 1.0
    model([cell])
    assert clock.seconds() == [3.0, 6.0]
    assert clock.seconds(since=1) == [6.0]
    assert clock.ticks() == [7.0]
    clock.close()
    model([cell])
    assert len(clock.passes) == 2


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["aten::mul", "part/rotary", "block"], "rotary"),
        (["aten::copy_", "part/copies"], "copies"),
        (["aten::mul", "part/rotary", "part/copies"], "rotary"),
        (["aten::addmm", "aten::linear", "part/modulation"], "linear"),
        (["aten::_flash_attention_forward", "aten::scaled_dot_product_attention"], "attention"),
        (["aten::copy_", "aten::to"], "copies"),
        (["aten::add"], "rest"),
    ],
)
def test_an_operator_belongs_to_the_innermost_part(names: list[str], part: str) -> None:
    assert part_of(names) == part


def test_more_blocks_rest_where_there_is_more_room() -> None:
    job = next(row.job for row in gpu_rows() if row.name == "full.stream_k4_auto+ring@704x384,24g")
    told = keywords("14b")
    found = [
        resident_blocks(told, job | {"cap_gib": gib}, {"source": "host", "cells": 4}, 6e8)
        for gib in (5.0, GPU_CAP_GIB, 40.0, None)
    ]
    assert found == sorted(found)
    assert found[0] == 0
    assert 15 < found[1] < 40
    assert found[2] == found[3] == 40
