"""Randomness as pure functions of (seed, block, step): no generator state, the same on every rank and in any order.

Numbers come from the Philox counter generator (Salmon et al., 2011), whose raw words are fixed by its definition; the
key is the seed, the counter is the place.
"""

import math
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_NOISE, _DISTANCE = 1, 2  # what the number is for: part of the counter, so that uses never share words


@runtime_checkable
class NoiseSource(Protocol):
    """Initial noise of a block, float32 of the asked shape."""

    def block(self, block: int, shape: tuple[int, ...]) -> Tensor: ...


@runtime_checkable
class DistanceSource(Protocol):
    """How many latent frames the reference stays ahead of a block in one cell."""

    def __call__(self, block: int, step: int) -> int: ...


def philox_words(seed: int, purpose: int, block: int, step: int, count: int) -> np.ndarray:
    """`count` 64-bit words that belong to this place alone."""
    if block < 0:
        raise ValueError(f"blocks are counted from 0, got block {block}")
    counter = np.array([0, step, block, purpose], dtype=np.uint64)
    key = np.array([seed % 2**64, 0], dtype=np.uint64)
    return np.random.Philox(counter=counter, key=key).random_raw(count)


def normal(words: np.ndarray) -> np.ndarray:
    """Standard normal float64 values, one per word, by Box and Muller's pairs; an even number of words."""
    unit = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    first, second = unit.reshape(2, -1)
    radius = np.sqrt(-2.0 * np.log1p(-first))
    angle = 2.0 * math.pi * second
    return np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))


class CounterNoise:
    """Gaussian noise of (seed, block)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def block(self, block: int, shape: tuple[int, ...]) -> Float[Tensor, "..."]:
        count = math.prod(shape)
        words = philox_words(self.seed, _NOISE, block, 0, count + count % 2)
        return torch.from_numpy(normal(words)[:count].astype(np.float32)).reshape(shape)


class CounterDistance:
    """Sink distance of (seed, block, step), even over `low`..`high` (the reference draws it unseeded, a fault)."""

    def __init__(self, seed: int, low: int = 4, high: int = 30) -> None:
        if not 0 <= low <= high:
            raise ValueError(
                f"rollout.sink_distance=[{low},{high}] must be two latent frame counts, the smaller first; "
                "the released weights were trained with [4,30]"
            )
        self.seed, self.low, self.high = seed, low, high

    def __call__(self, block: int, step: int) -> int:
        word = int(philox_words(self.seed, _DISTANCE, block, step, 1)[0])
        return self.low + word % (self.high - self.low + 1)


class TableNoise:
    """Noise recorded elsewhere, [clips, 16, frames, h, w]: how reference runs are repeated."""

    def __init__(self, table: Float[Tensor, "clips c frames h w"], block_latents: int = 3) -> None:
        self.blocks = table.transpose(1, 2).flatten(0, 1).transpose(0, 1).split(block_latents, dim=1)

    def block(self, block: int, shape: tuple[int, ...]) -> Tensor:
        return self.blocks[block].reshape(shape)


class TableDistance:
    """Sink distances recorded elsewhere, indexed [clip][block][step]."""

    def __init__(self, table: list[list[list[int]]]) -> None:
        self.rows = [row for clip in table for row in clip]

    def __call__(self, block: int, step: int) -> int:
        return self.rows[block][step]
