"""Matrices in one byte a number: rows of float8 (e4m3) or int8 with a scale each. Lossy; how much is measured.

The formula is torchao's for per-row scales: payload = weight / scale, where the largest of a row becomes the largest
number of the type.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

KINDS = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}


def quantise(weight: Float[Tensor, "out in"], kind: str) -> tuple[Tensor, Tensor]:
    """Payload [out, in] of that kind, and scales [out, 1] in float32. A row of zeros has scale 1."""
    dtype = KINDS[kind]
    most = LARGEST[dtype]
    exact = weight.float()
    largest = exact.abs().amax(1, keepdim=True)
    scale = torch.where(largest > 0, largest / most, torch.ones_like(largest))
    payload = (exact / scale).clamp(-most, most)
    return (payload.round() if kind == "int8" else payload).to(dtype), scale


def restore(payload: Tensor, scale: Float[Tensor, "out 1"], dtype: torch.dtype) -> Float[Tensor, "out in"]:
    """The matrix that payload and scales stand for."""
    return (payload.float() * scale).to(dtype)


def keep_small(x: Float[Tensor, "... channels"], payload: Tensor, scale: Float[Tensor, "... 1"]) -> None:
    """Write keys or values into rooms of one byte a number, with a float32 scale for each head of a token."""
    most = LARGEST[payload.dtype]
    largest = torch.linalg.vector_norm(x, float("inf"), dim=-1, keepdim=True, dtype=torch.float32)
    scale.copy_(torch.where(largest > 0, largest / most, torch.ones_like(largest)))
    exact = (x / scale).clamp_(-most, most)
    payload.copy_(exact.round_() if payload.dtype == torch.int8 else exact)


def give_back(room: Tensor, payload: Tensor, scale: Tensor) -> None:
    """Write what such rooms stand for into one of the type in which it is computed, rounded once."""
    room.copy_(payload).mul_(scale)


def scaled_linear(
    x: Float[Tensor, "... in"], payload: Tensor, scale: Float[Tensor, "out 1"], bias: Float[Tensor, " out"]
) -> Float[Tensor, "... out"]:
    """A linear layer on such a matrix: the payload is exact in bfloat16, and rows are scaled after the product.

    Scales stay in float32 there: rounded to bfloat16, one would shift all of its row alike.
    """
    product = F.linear(x, payload.to(x.dtype))
    return product.mul_(scale[:, 0]).add_(bias)
