"""Seeded random tensors: where weights come from when nobody has any."""

from __future__ import annotations

import pytest
import torch

from liveavatar.checkpoint.read import RandomWeights

SHAPE = torch.Size((3, 4))


def test_random_tensors_are_a_pure_function_of_seed_and_name() -> None:
    first, second = RandomWeights(5), RandomWeights(5)
    names = ["blocks.0.q.weight", "blocks.1.q.weight", "blocks.0.norm.weight", "blocks.0.q.bias"]
    there = {name: first.read(name, SHAPE) for name in names}
    back = {name: second.read(name, SHAPE) for name in reversed(names)}  # in any order
    assert all(torch.equal(there[name], back[name]) for name in names)
    assert not torch.equal(there[names[0]], there[names[1]])
    assert not torch.equal(there[names[0]], RandomWeights(6).read(names[0], SHAPE))
    assert first.origin == "random"


def test_random_tensors_let_signals_through() -> None:
    source = RandomWeights(0)
    matrix = source.read("blocks.0.ffn.0.weight", torch.Size((400, 900)))
    assert float(matrix.std()) == pytest.approx(1 / 30, rel=0.02)
    assert matrix.dtype == torch.float32
    assert float(source.read("blocks.0.norm3.weight", torch.Size((900,))).mean()) == pytest.approx(1, abs=0.01)
    assert float(source.read("blocks.0.q.bias", torch.Size((900,))).abs().max()) < 0.1
    assert float(source.read("blocks.0.modulation", torch.Size((1, 6, 900))).std()) == pytest.approx(0.3, rel=0.05)
