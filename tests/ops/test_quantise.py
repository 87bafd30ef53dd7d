"""One byte a number: torchao's own bits, the error of the type, and the product of the restored matrix."""

from __future__ import annotations

import pytest
import torch

from liveavatar.ops.quantise import KINDS, quantise, restore, scaled_linear
from tests.scene import draw

ERROR = {"fp8": 0.032, "int8": 0.012}
"""Of rows of normal numbers, relative, in the mean of squares: e4m3 keeps three bits, int8 127 steps to the largest."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_that_of_the_type(kind: str) -> None:
    weight = draw(0, 64, 256) * torch.logspace(-3, 3, 64)[:, None]
    payload, scale = quantise(weight, kind)
    assert payload.dtype == KINDS[kind]
    assert scale.shape == (64, 1)
    back = restore(payload, scale, torch.float32)
    error = ((back - weight).square().mean(1) / weight.square().mean(1)).sqrt()
    assert (error < ERROR[kind]).all()
    assert (error > ERROR[kind] / 4).all()
    largest = weight.abs().argmax(1)
    rows = torch.arange(64)
    torch.testing.assert_close(back[rows, largest], weight[rows, largest])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_know_one_another_and_zeros_stay(kind: str) -> None:
    weight = draw(1, 8, 32)
    weight[3] = 0
    payload, scale = quantise(weight, kind)
    part, scales = quantise(weight[2:5], kind)
    assert torch.equal(part.view(torch.uint8), payload[2:5].view(torch.uint8))
    assert torch.equal(scales, scale[2:5])
    assert not restore(payload, scale, torch.float32)[3].any()


def test_float8_is_torchaos() -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao comes with the extra `dev`")
    weight = draw(2, 64, 128) * 0.02
    oracle = quantization.Float8Tensor.from_hp(weight, granularity=quantization.PerRow())
    payload, scale = quantise(weight, "fp8")
    assert torch.equal(payload.view(torch.uint8), oracle.qdata.view(torch.uint8))
    assert torch.equal(scale, oracle.scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_that_of_the_restored_matrix(kind: str, dtype: torch.dtype) -> None:
    weight, bias, x = draw(3, 24, 48), draw(4, 24), draw(5, 2, 7, 48)
    payload, scale = quantise(weight, kind)
    expected = torch.nn.functional.linear(x, restore(payload, scale, torch.float32), bias)
    found = scaled_linear(x.to(dtype), payload, scale, bias.to(dtype))
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)
