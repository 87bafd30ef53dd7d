"""A decoder that decodes nothing: for streams of which the latents alone are wanted."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from liveavatar.sampling.conditioning import DROPPED_FRAMES
from liveavatar.sampling.decoding import Decoded
from liveavatar.types import BLOCK_FRAMES


class Blank:
    """Black frames that take no memory, as many as there would be (a `Decoding`)."""

    def __init__(self, height: int, width: int) -> None:
        self.size, self._fresh = (height, width), True

    def push(self, index: int, latents: Tensor) -> Iterator[Decoded]:
        count = BLOCK_FRAMES - DROPPED_FRAMES if self._fresh else BLOCK_FRAMES
        self._fresh = False
        yield Decoded(torch.full((1,), -1.0).expand(1, 3, count, *self.size), {index: latents[0]})

    def flush(self) -> Iterator[Decoded]:
        yield from ()
