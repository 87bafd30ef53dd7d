"""Sizes from the configuration alone equal those of the modules, and what can never fit is known before a start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from liveavatar.config import compose, make
from liveavatar.memory.readings import Room
from liveavatar.memory.rest import dit_units, impossible, parameters, rest_bytes

GB = 10**9


def _plain(*overrides: str) -> dict[str, Any]:
    config = compose("infer", overrides)
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


@pytest.mark.parametrize("model", ["tiny", "micro", "s2v_14b"])
def test_counts_are_those_of_the_modules(model: str) -> None:
    node = compose("infer", [f"model={model}"]).model
    with torch.device("meta"):
        parts = {name: make(node[name], name) for name in ("dit", "text", "speech", "vae")}
    real = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    found = parameters(node)
    assert found == real
    units = {name: sum(p.numel() for p in unit.parameters()) for name, unit in parts["dit"].units().items()}
    assert list(dit_units(node.dit).items()) == list(units.items())


@pytest.mark.parametrize(
    ("strategy", "ranks", "device", "host", "shared", "disk"),
    [
        ([], 1, 32.6, 0, 0, 0),
        (["+strategy=diagonal_pipeline"], 4, 8.15, 0, 0, 0),
        (["+strategy=timestep_pipeline"], 4, 32.6, 0, 0, 0),
        (["+strategy=diagonal_pipeline", "strategy.step_groups=2"], 4, 16.3, 0, 0, 0),
        (["+strategy=diagonal_pipeline", "strategy.source=host"], 4, 0, 32.6, 32.6, 0),
        (["+strategy=timestep_pipeline", "strategy.source=peers"], 4, 8.15, 0, 0, 0),
        (["+strategy=fsdp_stream", "parallel.hoist=false"], 1, 1.41, 32.6, 0, 0),
        (["+strategy=fsdp_full"], 4, 8.15, 0, 0, 0),
        (["+strategy=hsdp_offload"], 4, 0, 32.6, 0, 0),
        (["+strategy=hsdp_offload", "strategy.shard_size=2"], 4, 0, 65.2, 0, 0),
        (["+strategy=fsdp_stream"], 1, 1.196, 32.6, 0, 0),
        (["+strategy=fsdp_stream"], 4, 1.196 + 8.15, 0, 0, 0),
        (["+strategy=fsdp_stream", "strategy.source=host", "strategy.resident=10"], 4, 1.196 + 5.98, 26.62, 26.62, 0),
        (["+strategy=fsdp_stream", "strategy.source=disk", "strategy.slots=3"], 1, 1.794, 0, 0, 32.6),
    ],
)
def test_where_weights_rest(
    strategy: list[str], ranks: int, device: float, host: float, shared: float, disk: float
) -> None:
    found = rest_bytes(_plain("model=s2v_14b", "precision=bf16", *strategy), ranks)
    others = 2 * (5_680_910_336 + 315_437_696 + 126_892_531) / GB
    sizes = (found.device / GB - others, found.host / GB, found.shared / GB, found.disk / GB)
    assert sizes == pytest.approx((device, host, shared, disk), abs=0.02)


def test_only_what_can_never_lie_there_is_impossible() -> None:
    rest = rest_bytes(_plain("model=s2v_14b", "precision=bf16"), 1)
    main, small = Room(10 * GB, 256 * GB, "the machine's memory"), Room(GB, 24 * GB, "the machine's memory")
    assert impossible(rest, 1, main, None) is None
    assert "44.8 GB of main memory, and the machine's memory is 24.0 GB" in (impossible(rest, 1, small, None) or "")
    assert "each card, which has 24.0 GB" in (impossible(rest, 1, main, 24 * GB) or "")
    assert impossible(rest, 1, small, 80 * GB) is None
