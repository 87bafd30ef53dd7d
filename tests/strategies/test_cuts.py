"""What layers cost, and stage tables that a user writes: understood, or refused with the reason."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.strategies.costs import UnitClock
from liveavatar.config import compose
from liveavatar.sampling.stages import Stage
from liveavatar.strategies.cuts import costs_of, layer_costs, written_table
from liveavatar.strategies.pipeline import DiagonalPipeline
from tests.scene import conditioning, latents_of, make_dit, make_rollout, meta_dit

LAST, FIRST = "steps 0-3 layers 1-2", "steps 0-3 layer 0"


def test_rows_are_read_in_words_and_as_mappings() -> None:
    table = written_table(["decode", LAST, {"steps": "0-3", "layers": 0}], 3, 4, 3, True)
    assert table.stages == (Stage(range(0), range(0)), Stage(range(4), range(1, 3)), Stage(range(4), range(1)))
    again = written_table([str(stage) for stage in table.stages[1:]], 2, 4, 3, False)  # as the log writes them
    assert again.stages == table.stages[1:]


@pytest.mark.parametrize(
    ("rows", "decode_rank", "message"),
    [
        ([LAST], False, r"1 rows for 2 ranks"),
        ([LAST, "half of it"], False, r"row 1, 'half of it', is not understood: write strategy\.table="),
        ([LAST, "steps 3-0 layer 0"], False, r"row 1.*counts backwards"),
        ([FIRST, LAST], False, r"rank 0 writes the video, but row 1 .*finishes the blocks: move that row"),
        (["steps 0-3 layers 0-2", "decode"], True, r"rank 0 writes the video, but row 1 .*decodes"),
        ([LAST, FIRST], True, r"no row `decode`, and parallel\.decode=rank: write parallel\.decode=inline"),
        (["decode", "steps 0-3 layers 0-2"], False, r"a row `decode`, and parallel\.decode=inline: write .*=rank"),
        ([LAST, "steps 0-2 layer 0"], False, r"layers \[1, 2\] at step 3"),
        ([LAST, "steps 0-4 layer 0"], False, r"sampler\.steps=4"),
    ],
)
def test_a_written_table_that_cannot_work_is_refused(rows: list[Any], decode_rank: bool, message: str) -> None:
    ranks = 2
    with pytest.raises(ValueError, match=message):
        written_table(rows, ranks, 4, 3, decode_rank)


def test_costs_are_modelled_listed_or_measured(tmp_path: Path) -> None:
    dit, file = meta_dit(), tmp_path / "costs.json"
    assert costs_of(dit, None, None) == (layer_costs(dit), 0.0)
    assert costs_of(dit, [1, 2, 3], 2.0) == ([1.0, 2.0, 3.0], 4.0)  # a layer costs 2 on average
    file.write_text(json.dumps({"layers": [0.1, 0.2, 0.3], "decode": 0.5, "device": "some"}))
    assert costs_of(dit, str(file), None) == ([0.1, 0.2, 0.3], 0.5)
    assert costs_of(dit, str(file), 0.0) == ([0.1, 0.2, 0.3], 0.0)
    file.write_text("[3, 2, 1]")
    assert costs_of(dit, str(file), None) == ([3.0, 2.0, 1.0], 0.0)


@pytest.mark.parametrize(
    ("costs", "decode_cost", "message"),
    [
        ([1, 2], None, r"strategy\.costs has 2 numbers, and the model 3 layers"),
        ([1, 0, 2], None, r"strategy\.costs must be numbers above 0"),
        ([1, "a", 2], None, r"strategy\.costs must be numbers above 0"),
        (None, -1.0, r"strategy\.decode_cost=-1\.0 must be 0 or more"),
        ("/no/such/file", None, r"strategy\.costs=/no/such/file cannot be read"),
        ({"layers": 3}, None, r'lacks a list "layers"'),
        ({"layers": [1, 1, 1], "decode": "long"}, None, r'"decode" is \'long\''),
    ],
)
def test_costs_that_make_no_sense_are_refused(
    tmp_path: Path, costs: Any, decode_cost: float | None, message: str
) -> None:
    if isinstance(costs, dict):
        file = tmp_path / "costs.json"
        file.write_text(json.dumps(costs))
        costs = str(file)
    with pytest.raises(ValueError, match=message):
        costs_of(meta_dit(), costs, decode_cost)


def test_tables_and_costs_can_be_written_on_the_command_line() -> None:
    words = ["+strategy=diagonal_pipeline", f'strategy.table=["{LAST}","{FIRST}"]', "strategy.costs=[1,2,3]"]
    node = compose("infer", words).strategy
    table = written_table(node.table, 2, 4, 3, False)
    assert [str(stage) for stage in table.stages] == ["steps 0-3 × layers 1-2", "steps 0-3 × layer 0"]
    assert costs_of(meta_dit(), node.costs, None)[0] == [1.0, 2.0, 3.0]


def test_units_are_timed_where_they_compute() -> None:
    dit = make_dit()
    clock = UnitClock(dit, torch.device("cpu"))
    latents_of(make_rollout(dit, conditioning(), steps=2), 3)
    assert set(clock.seconds) == set(dit.units())
    assert all(len(seconds) == 3 * 2 and min(seconds) > 0 for seconds in clock.seconds.values())  # and no prefill
    layers = clock.layers(3)
    assert sum(layers) == pytest.approx(sum(statistics.median(seconds) for seconds in clock.seconds.values()))
    assert layers[1] == statistics.median(clock.seconds["blocks.1"])  # it has no injector


def test_measured_costs_move_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiagonalPipeline, "world_size", 2, raising=False)
    monkeypatch.setattr(DiagonalPipeline, "global_rank", 0, raising=False)
    found = []
    for costs, decode in (([1, 1, 5], None), ([5, 1, 1], None), ([1, 1, 1], 8.0)):
        strategy = DiagonalPipeline(costs=costs, decode_cost=decode)
        strategy.arrange(meta_dit(), 4, "inline")
        assert strategy.table is not None
        found.append([len(stage.layers) for stage in strategy.table.stages])
    assert found == [[1, 2], [2, 1], [1, 2]]
