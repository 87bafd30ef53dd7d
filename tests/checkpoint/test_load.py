"""Modules built on meta come to life tensor by tensor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from liveavatar.checkpoint.load import materialise
from liveavatar.checkpoint.read import RandomWeights

CPU = torch.device("cpu")


class _Toy(nn.Module):
    def __init__(self, tied: bool = False, buffer: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        if tied:
            self.second.weight = self.first.weight
        if buffer:
            self.register_buffer("table", torch.zeros(3))


def _on_meta(**how: bool) -> _Toy:
    with torch.device("meta"):
        return _Toy(**how)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_parameter_gets_its_values(dtype: torch.dtype) -> None:
    module = _on_meta()
    materialise(module, RandomWeights(0), CPU, dtype)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, RandomWeights(0).read(name, parameter.shape).to(dtype))
        assert not parameter.requires_grad
    assert not module.training


def test_shared_parameters_stay_shared() -> None:
    module = _on_meta(tied=True)
    materialise(module, RandomWeights(0), CPU, torch.float32)
    assert module.second.weight is module.first.weight
    assert len(list(module.parameters())) == 3


def test_a_buffer_without_a_source_is_a_fault_of_ours() -> None:
    with pytest.raises(RuntimeError, match="table"):
        materialise(_on_meta(buffer=True), RandomWeights(0), CPU, torch.float32)
