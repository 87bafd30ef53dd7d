"""Stretches that are compiled: the same values, one function for all modules, and a plain word where it cannot be."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liveavatar.choice import check_compile, choose_compile
from liveavatar.ops.compiled import Compiled, compile_stretches
from liveavatar.ops.quantise import quantise, scaled_linear
from tests.running import CPU
from tests.scene import draw, make_dit


def _grown(layer: Layer, x: Tensor) -> Tensor:
    y = F.layer_norm(x, x.shape[-1:])
    return x + layer.second(F.gelu(layer.first(y), approximate="tanh"))


class Layer(nn.Module):
    """A feed-forward whose parameters may be views of anything."""

    stretches: ClassVar[Any] = (_grown,)

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)
        slab = draw(seed, 1000)
        for number, parameter in enumerate(self.parameters()):
            view = slab[200 * number : 200 * number + parameter.numel()].view(parameter.shape)
            parameter.requires_grad_(False).data = view

    def forward(self, x: Tensor) -> Tensor:
        return self.stretches[0](self, x)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def _graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@torch.no_grad()
def test_layers_share_a_function_for_each_shape(backend: str) -> None:
    model = nn.Sequential(*[Layer(seed) for seed in range(5)])
    expected = [model(draw(9, 1, tokens, 8)) for tokens in (4, 6)]
    assert compile_stretches(model, backend, CPU) == 1
    assert all(layer.stretches == model[0].stretches for layer in model)
    found = [model(draw(9, 1, tokens, 8)) for tokens in (4, 6)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert _graphs() == 2
    model.get_parameter("2.first.weight").data = draw(11, 16, 8)  # another slot of a ring
    assert not torch.equal(model(draw(9, 1, 4, 8)), expected[0])
    assert _graphs() == 2
    assert Layer.stretches == (_grown,)  # other models compute as before


@torch.no_grad()
def test_code_that_inductor_writes_computes_the_same() -> None:
    """In float32, within 1e-5 of what is computed without it; a quantised matrix too."""
    layer, x = Layer(0), draw(9, 1, 6, 8)
    layer.second = _Scaled(*quantise(draw(3, 8, 16), "fp8"), draw(4, 8))  # type: ignore[assignment]
    expected = layer(x)
    compile_stretches(layer, "inductor", CPU)
    found = layer(x)
    assert layer.stretches[0].working is not None, "it was compiled"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert _graphs() == 1


class _Scaled(nn.Module):
    def __init__(self, payload: Tensor, scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.payload, self.scale, self.bias = (nn.Parameter(x, requires_grad=False) for x in (payload, scale, bias))

    def forward(self, x: Tensor) -> Tensor:
        plain = getattr(scaled_linear, "__wrapped__", scaled_linear)  # without the tests' own checks
        return plain(x, self.payload, self.scale, self.bias)


@torch.no_grad()
def test_a_layer_with_an_adapter_on_it_computes_as_it_is() -> None:
    model, x = nn.Sequential(Layer(0), Layer(1)), draw(9, 1, 6, 8)
    compile_stretches(model, "eager", CPU)
    before, graphs = model(x), _graphs()
    hook = model.get_submodule("1.first").register_forward_hook(lambda _, args, output: output + 1)
    assert not torch.equal(model(x), before)
    hook.remove()
    assert torch.equal(model(x), before)
    assert _graphs() == graphs


@torch.no_grad()
def test_what_does_not_compile_is_said_once_and_computes_all_the_same() -> None:
    def broken(graph: Any, example: Any) -> Any:
        raise NotImplementedError("no code for this machine")

    said: list[str] = []
    layer, x = Layer(0), draw(9, 1, 6, 8)
    stretch = Compiled(_grown, "eager", said.append)
    stretch.working = torch.compile(_grown, backend=broken)
    for _ in range(2):
        assert torch.equal(stretch(layer, x), _grown(layer, x))
    assert len(said) == 1
    assert "no code for this machine" in said[0]
    with pytest.raises(RuntimeError, match="cannot be multiplied"):  # a mistake of ours stays one
        Compiled(_grown, "eager", said.append)(layer, draw(9, 1, 6, 7))


def test_a_missing_compiler_is_said_and_nothing_is_compiled(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(logging.getLogger("liveavatar"), "propagate", True)
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    dit = make_dit()
    with caplog.at_level("INFO", logger="liveavatar"):
        assert choose_compile(dit, "inductor", CPU) == "none"
        assert choose_compile(dit, None, CPU) == "none"
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("compile=inductor: inductor needs a C++ compiler, as g++, and finds none.")
    assert not any("stretches" in vars(part) for part in dit.modules())
    assert choose_compile(dit, "eager", CPU) == "eager"
    assert sum("stretches" in vars(part) for part in dit.modules()) == 3 + 3 + 2 + 2 + 1


def test_what_compile_may_say() -> None:
    assert [check_compile(asked) for asked in (None, False, True, "aot_eager")] == [None, None, "inductor", "aot_eager"]
    with pytest.raises(ValueError, match="compile='fast' is unknown; write true or false, or one of inductor, aot_eag"):
        check_compile("fast")
