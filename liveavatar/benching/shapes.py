"""The model and the scene that every row works on: seeded weights, seeded conditioning."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from liveavatar.benching.sizes import keywords
from liveavatar.checkpoint.read import RandomWeights
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.sampling.conditioning import Conditioning, NoPose

STRIDE = 8
"""Pixels of a latent, in each direction."""


def grid(size: str) -> tuple[int, int]:
    """Latents of a picture, rows and columns."""
    height, width = (int(side) for side in size.split("*"))
    return height // STRIDE, width // STRIDE


def on_meta(shape: str) -> AvatarDiT:
    with torch.device("meta"):
        return AvatarDiT(**keywords(shape)).eval()


class TiledWeights:
    """Weights made of one run of seeded normal numbers, repeated from a place that the name decides.

    16 billion numbers take minutes to draw and seconds to repeat; products and copies cost the same. Scales are those
    of `RandomWeights`, so that values stay in range through all layers.
    """

    origin = "random, tiled"
    LENGTH = 1_000_003  # a prime: rows of a matrix do not fall into step with it

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self.dtype = dtype
        self._run = torch.randn(self.LENGTH, generator=torch.Generator().manual_seed(seed))

    def read(self, name: str, shape: torch.Size) -> Tensor:
        count = math.prod(shape)
        start = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") % self.LENGTH
        few = self._run if count > 4096 else self._run.roll(-start)[: max(count, 1)]
        if count <= 4096:
            return RandomWeights._scaled(name, few[:count].reshape(shape).clone()).to(self.dtype)
        fan = few.new_empty((1, math.prod(shape[1:]))) if len(shape) > 1 else few.new_empty(1)
        gain = RandomWeights._scaled(name, torch.ones_like(fan).expand(1, *fan.shape[1:]))
        if len(shape) == 1 or gain.numel() == 0:
            return RandomWeights._scaled(name, tiled(few, count, start).reshape(shape)).to(self.dtype)
        return tiled((few * float(gain.flatten()[0])).to(self.dtype), count, start).reshape(shape)


def tiled(run: Tensor, count: int, start: int) -> Tensor:
    """So many numbers of a run that is repeated, from `start` on."""
    found = torch.empty(count, dtype=run.dtype)
    pour(found, run, start)
    return found


def pour(target: Tensor, run: Tensor, start: int) -> None:
    """Fill a flat tensor from a run that is repeated, from `start` on; the run may lie on another device."""
    at, start = 0, start % len(run)
    while at < target.numel():
        step = min(len(run) - start, target.numel() - at)
        target[at : at + step].copy_(run[start : start + step])
        at, start = at + step, 0


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Voice:
    """Speech features that are a pure function of the block."""

    layers: int
    channels: int

    def block(self, index: int) -> Tensor:
        return draw(1000 + index, 1, self.layers, self.channels, 12)


def scene(dit: AvatarDiT, size: str, device: torch.device) -> Conditioning:
    """What a stream hears, reads and looks at: numbers of a seed."""
    h, w = grid(size)
    dtype = dit.dtype

    def put(seed: int, *shape: int) -> Tensor:
        return draw(seed, *shape).to(device, dtype)

    return Conditioning(
        text=put(1, 1, min(77, dit.text_len - 1), dit.text_dim),
        reference=put(2, 1, 16, 1, h, w),
        motion=put(3, 1, 16, 19, h, w),
        audio=Voice(*dit.audio),
        pose=NoPose(torch.zeros(1, 16, 3, h, w, device=device, dtype=dtype)),
    )
