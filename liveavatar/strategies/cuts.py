"""How a pipeline is cut: what layers and decoding cost, and stage tables that a user writes down."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from liveavatar.models.dit.model import AvatarDiT
from liveavatar.sampling.stages import Stage, StageTable

EXAMPLE = 'strategy.table=["steps 0-3 layers 2","steps 0-3 layers 0-1"], rank 0 first'


def layer_costs(dit: AvatarDiT) -> list[float]:
    """Parameters that each layer brings along: its block, its injector, and what stands before and after the blocks."""
    whole, costs = dit.units(), [0.0] * dit.num_layers
    layer = 0
    for name, unit in whole.items():
        if name.startswith("blocks."):
            layer = int(name.split(".")[1])
        costs[layer] += sum(parameter.numel() for parameter in unit.parameters())
    return costs


def costs_of(dit: AvatarDiT, costs: Any, decode_cost: float | None) -> tuple[list[float], float]:
    """The cost of each layer in a cell, and that of decoding a block, in one unit.

    `costs`: None models a layer by its parameters; a list has a number for each layer; a path names a JSON file with
    `layers`, such a list, and `decode`, seconds a block. `decode_cost`, in layers of average cost, goes before the
    file's. Raises ValueError, naming the key, for anything else.
    """
    layers, decode = (layer_costs(dit), 0.0) if costs is None else _measured(costs)
    if len(layers) != dit.num_layers:
        raise ValueError(
            f"strategy.costs has {len(layers)} numbers, and the model {dit.num_layers} layers: one for each"
        )
    if not all(_is_number(cost) and cost > 0 for cost in layers):
        raise ValueError("strategy.costs must be numbers above 0: seconds, or any other unit, for each layer")
    if decode_cost is not None:
        if not _is_number(decode_cost) or decode_cost < 0:
            raise ValueError(f"strategy.decode_cost={decode_cost} must be 0 or more: it counts layers of average cost")
        decode = decode_cost * sum(layers) / len(layers)
    return [float(cost) for cost in layers], decode


def _measured(costs: Any) -> tuple[Sequence[Any], float]:
    if not isinstance(costs, str):
        return list(costs), 0.0
    path = Path(costs).expanduser()
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"strategy.costs={costs} cannot be read ({error}): name a JSON file, or give a list"
        ) from error
    if isinstance(found, list):
        return found, 0.0
    if not isinstance(found, Mapping) or not isinstance(found.get("layers"), list):
        raise ValueError(
            f'strategy.costs={costs} lacks a list "layers": seconds for each layer, and "decode" for a block'
        )
    decode = found.get("decode", 0.0)
    if not _is_number(decode) or decode < 0:
        raise ValueError(f'strategy.costs={costs}: "decode" is {decode!r} and must be seconds, 0 or more')
    return found["layers"], float(decode)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def written_table(rows: Sequence[Any], ranks: int, steps: int, layers: int, decode_rank: bool) -> StageTable:
    """The stage table of `strategy.table`: a row for each rank, `steps 0-1 layers 0-19` or `decode`.

    A row may also be a mapping with the keys `steps` and `layers`. Raises ValueError for a table that cannot work.
    """
    stages = tuple(_stage(row, number) for number, row in enumerate(rows))
    if len(stages) != ranks:
        raise ValueError(f"strategy.table has {len(stages)} rows for {ranks} ranks: write one for each")
    if decode_rank != any(not stage.computes for stage in stages):
        has, write = ("no", "rank") if decode_rank else ("a", "inline")
        other = "inline" if decode_rank else "rank"
        raise ValueError(
            f"strategy.table has {has} row `decode`, and parallel.decode={write}: write parallel.decode={other}, or "
            "change the table"
        )
    table = StageTable(stages, steps, layers)
    if table.shows != 0:
        raise ValueError(
            f"strategy.table: rank 0 writes the video, but row {table.shows} ({stages[table.shows]}) "
            f"{'decodes' if decode_rank else 'finishes the blocks'}: move that row to the front"
        )
    return table


def _stage(row: Any, number: int) -> Stage:
    if isinstance(row, Mapping) and set(row) == {"steps", "layers"}:
        row = f"steps {row['steps']} layers {row['layers']}"
    if str(row).strip() == "decode":
        return Stage(range(0), range(0))
    span = r"(\d+)(?:-(\d+))?"
    found = re.fullmatch(rf"steps? {span}[,;:]? *(?:× *|x *)?layers? {span}", str(row).strip())
    if found is None:
        raise ValueError(f"strategy.table: row {number}, {row!r}, is not understood: write {EXAMPLE}")
    a, b, c, d = (int(text) if text else None for text in found.groups())
    assert a is not None
    assert c is not None
    stage = Stage(range(a, (a if b is None else b) + 1), range(c, (c if d is None else d) + 1))
    if not stage.steps or not stage.layers:
        raise ValueError(f"strategy.table: row {number}, {row!r}, counts backwards: write {EXAMPLE}")
    return stage
