"""Sizes from the configuration are those of the models that it builds."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from liveavatar.checkpoint.slab import SlabLayout
from liveavatar.config import compose, make
from liveavatar.memory.sizes import DitSizes, picture, speech_params, text_params, vae_params
from liveavatar.models.dit.context import Grid
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.models.dit.quantised import quantise_linears
from liveavatar.strategies.pipeline import layer_costs


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("model", ["s2v_14b", "tiny", "micro"])
def test_parameters_are_those_of_the_model_on_meta(model: str) -> None:
    node = compose("infer", [f"model={model}"]).model
    plain = OmegaConf.to_container(node, resolve=False)
    assert isinstance(plain, dict)
    with torch.device("meta"):
        parts = {name: make(node[name], name) for name in ("dit", "text", "speech", "vae")}
    dit, sizes = parts["dit"], DitSizes.of(plain["dit"])
    assert isinstance(dit, AvatarDiT)
    assert {name: [p.numel() for p in unit.parameters()] for name, unit in dit.units().items()} == {
        name: list(numbers) for name, numbers in sizes.units.items()
    }
    for name, unit in dit.units().items():
        for dtype, parts_of in ((torch.bfloat16, 1), (torch.float32, 5)):
            assert sizes.slab(name, dtype.itemsize, parts_of) == SlabLayout.of(unit, dtype, parts_of).nbytes
    assert sizes.layer_costs() == layer_costs(dit)
    assert text_params(plain["text"]) == _count(parts["text"])
    assert speech_params(plain["speech"]) == _count(parts["speech"])
    assert vae_params(plain["vae"]) == _count(parts["vae"])
    for layers in (range(sizes.layers), range(2), range(1, sizes.layers)):
        dit.stage = layers
        assert sizes.stage(layers) == list(dit.units())
    dit.stage = range(sizes.layers)
    quantise_linears(dit, "fp8")
    for name, unit in dit.units().items():
        assert sizes.slab(name, 2, 3, small=True) == SlabLayout.of(unit, torch.bfloat16, 3).nbytes
        assert sizes.hot_slab(name, 2, small=True) == SlabLayout.of(unit, torch.bfloat16, names=unit.part()).nbytes


@pytest.mark.parametrize(("height", "width"), [(704, 384), (384, 256), (640, 448), (64, 64), (128, 1024)])
def test_tokens_are_those_of_the_grid(height: int, width: int) -> None:
    seen, grid = picture(f"{height}*{width}", 64, 12), Grid(height // 8, width // 8)
    assert (seen.frame_tokens, seen.sink_tokens) == (grid.frame_tokens, grid.sink_tokens)


@pytest.mark.parametrize("size", ["0", "big", "704*", "32*704", "9000*9000", "-64*64", "1*2*3"])
def test_sizes_without_sense_are_refused(size: str) -> None:
    with pytest.raises(ValueError, match=r"request\.size=.*704\*384|request\.size=.*nearest is request\.size="):
        picture(size, 64, 12)


def test_conditioning_leaves_the_block_of_the_notes() -> None:
    node = OmegaConf.to_container(compose("infer", ["model=s2v_14b"]).model.dit, resolve=False)
    assert isinstance(node, dict)
    sizes = DitSizes.of(node)
    assert sum(sizes.units["blocks.7"]) == 351_394_304
    assert sizes.params == 16_295_755_609
    assert 2 * (sum(sizes.units["blocks.7"]) - sizes.cold("blocks.7")) == pytest.approx(597.9e6, rel=2e-3)
    hot = 2 * sum(sum(numbers) - sizes.cold(name) for name, numbers in sizes.units.items())
    assert hot == pytest.approx(25.2e9, rel=0.01)
