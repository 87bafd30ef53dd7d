"""The small arithmetic of the DiT against plain formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from liveavatar.ops.embed import (
    RmsNorm,
    gated_add,
    linear_float32,
    modulate,
    plain_norm,
    sinusoid,
    unpatchify,
)
from liveavatar.ops.lora import merge
from tests.scene import draw


def test_sinusoid_is_cosines_then_sines() -> None:
    table = sinusoid(torch.tensor([0.0, 1.0, 857.692]), 8)
    assert table.dtype == torch.float32
    for row, t in enumerate((0.0, 1.0, 857.692)):
        angles = [float(torch.tensor(t)) * 10_000 ** (-i / 4) for i in range(4)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        torch.testing.assert_close(table[row], torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_is_torchs_over_the_whole_width(dtype: torch.dtype) -> None:
    norm = RmsNorm(24, 1e-6).to(dtype)
    norm.weight.data = (1 + 0.3 * draw(0, 24)).to(dtype)
    for scale in (1e-4, 1.0, 30.0):
        x = (scale * draw(1, 2, 5, 24)).to(dtype)
        expected = F.rms_norm(x.float(), (24,), norm.weight.float(), 1e-6)
        given = norm(x)
        assert given.dtype == dtype
        tolerance = 2e-6 if dtype == torch.float32 else 2**-7
        torch.testing.assert_close(given.float(), expected, rtol=tolerance, atol=1e-6)


def test_plain_norm_has_no_parameters_and_its_own_epsilon() -> None:
    x = 1e-3 * draw(2, 3, 10).double().float()
    centred = x - x.mean(-1, keepdim=True)
    for eps in (1e-6, 1e-5):
        expected = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        torch.testing.assert_close(plain_norm(x, eps), expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(plain_norm(x, 1e-6), plain_norm(x, 1e-5))


@pytest.mark.parametrize("groups", [1, 3])
def test_modulation_and_gate_belong_to_the_tokens_of_their_group(groups: int) -> None:
    x, y = draw(0, 2, 6, 4), draw(1, 2, 6, 4)
    shift, scale, gate = (draw(seed, 2, groups, 4) for seed in (2, 3, 4))
    moved, added = modulate(x, shift, scale), gated_add(x, y, gate)
    for token in range(6):
        group = token * groups // 6
        expected = x[:, token] * (1 + scale[:, group]) + shift[:, group]
        torch.testing.assert_close(moved[:, token], expected, rtol=1e-6, atol=1e-6)
        expected = x[:, token] + gate[:, group] * y[:, token]
        torch.testing.assert_close(added[:, token], expected, rtol=1e-6, atol=1e-6)


def test_modulation_of_bfloat16_tokens_is_float32() -> None:
    x, row = draw(0, 1, 6, 4).bfloat16(), draw(1, 1, 1, 4)
    assert modulate(x, row, row).dtype == torch.float32
    assert torch.equal(modulate(x, row, row), modulate(x.float(), row, row))
    assert torch.equal(gated_add(x.float(), x, row), gated_add(x.float(), x.float(), row))


def test_unpatchify_puts_every_value_in_its_place() -> None:
    frames, rows, columns, channels = 3, 2, 5, 7
    picture = torch.arange(frames * rows * columns * 4 * channels, dtype=torch.float32)
    tokens = picture.view(1, frames * rows * columns, 4 * channels)
    out = unpatchify(tokens, frames, rows, columns)
    assert out.shape == (1, channels, frames, 2 * rows, 2 * columns)
    for f in range(frames):
        for y in range(2 * rows):
            for x in range(2 * columns):
                token = (f * rows + y // 2) * columns + x // 2
                first = (y % 2 * 2 + x % 2) * channels
                assert torch.equal(out[0, :, f, y, x], tokens[0, token, first : first + channels])


def test_a_bfloat16_linear_can_compute_in_float32() -> None:
    layer = nn.Linear(6, 5).bfloat16()
    x = draw(0, 3, 6).bfloat16()
    expected = x.double() @ layer.weight.double().T + layer.bias.double()
    torch.testing.assert_close(linear_float32(x, layer), expected.float(), rtol=1e-6, atol=1e-6)
    bare = nn.Linear(6, 5, bias=False)
    torch.testing.assert_close(linear_float32(draw(0, 3, 6), bare), bare(draw(0, 3, 6)))


def test_lora_is_added_in_float32_and_rounded_once_by_whoever_stores_it() -> None:
    weight, down, up = draw(0, 8, 6).bfloat16(), 0.1 * draw(1, 2, 6), 0.1 * draw(2, 8, 2)
    merged = merge(weight, down, up, 0.5)
    assert merged.dtype == torch.float32
    delta = 0.5 * (up.double() @ down.double())
    torch.testing.assert_close(merged, (weight.double() + delta).float(), rtol=1e-6, atol=1e-7)
    rounded_twice = weight + delta.bfloat16()
    assert not torch.equal(merged.bfloat16(), rounded_twice)  # the rule is bf16(float32(W) + delta), not this
    half = merge(weight, down.bfloat16(), up.bfloat16(), 0.5)
    exact = weight.double() + 0.5 * (up.bfloat16().double() @ down.bfloat16().double())
    torch.testing.assert_close(half, exact.float(), rtol=1e-6, atol=1e-7)
