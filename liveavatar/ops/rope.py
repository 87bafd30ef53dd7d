"""Three-axis rotary positions, computed from positions and never looked up, so that no stream is too long.

The channel pairs of a head are divided among frame, row and column; adjacent channels form a pair. Angles and their
sines are float64, as in the reference, whose tables however end after 45000 positions (semantics, 3).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Complex64, Float
from torch import Tensor

BASE = 10_000.0


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """How many channel pairs of a head turn with frame, row and column: 22, 21, 21 for a head of 128."""
    if head_dim % 2:
        raise ValueError(
            f"a head of {head_dim} channels has no pairs to rotate: model.dit.dim / num_heads must be even"
        )
    pairs = head_dim // 2
    third = pairs // 3
    return pairs - 2 * third, third, third


def _turns(positions: Sequence[float], pairs: int) -> Tensor:
    """Unit complex numbers exp(i * position * frequency), complex128 [positions, pairs]."""
    exponent = torch.arange(pairs, dtype=torch.float64) / max(pairs, 1)
    angles = torch.outer(torch.tensor(positions, dtype=torch.float64), BASE**-exponent)
    return torch.polar(torch.ones_like(angles), angles)


def grid_rotations(
    frames: Sequence[float], rows: Sequence[float], columns: Sequence[float], head_dim: int
) -> Complex64[Tensor, "tokens pairs"]:
    """Rotations of the tokens of a frames x rows x columns grid, in (frame, row, column) order.

    Positions may be negative (the motion tokens lie in the past) and need not be consecutive. The table is made on the
    host; the caller moves it to its device, once per cell.
    """
    by_frame, by_row, by_column = axis_pairs(head_dim)
    grid = (len(frames), len(rows), len(columns))
    parts = (
        _turns(frames, by_frame)[:, None, None].expand(*grid, -1),
        _turns(rows, by_row)[None, :, None].expand(*grid, -1),
        _turns(columns, by_column)[None, None, :].expand(*grid, -1),
    )
    return torch.cat(parts, dim=-1).flatten(0, 2).to(torch.complex64)


def coarse_positions(fine: int, coarse: int) -> list[float]:
    """Row or column numbers of tokens pooled from `fine` positions to `coarse`: evenly spread, truncated.

    The spread is that of `torch.linspace` in float64, which counts from both ends to the middle.
    """
    last = fine - 1
    step = last / (coarse - 1) if coarse > 1 else 0.0
    spread = [i * step if i < coarse // 2 else last - (coarse - 1 - i) * step for i in range(coarse)]
    return [float(int(p)) for p in spread] if coarse > 1 else [0.0] * coarse


def rotate(
    x: Float[Tensor, "b tokens heads channels"], turns: Complex64[Tensor, "tokens pairs"]
) -> Float[Tensor, "b tokens heads channels"]:
    """Turn each channel pair of `x` by its token's angle; computed in float32, returned in the dtype of `x`."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns[:, None]).flatten(-2).to(x.dtype)
