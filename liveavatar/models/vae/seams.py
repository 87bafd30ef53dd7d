"""Decoding a part of the picture: what a rank that holds some of its lines needs of the others.

Lines are rows or columns, whichever are more. A convolution needs the lines beyond the seam where a whole picture has
them and a part is padded with zeros; attention needs all. The model knows no more of other ranks than this.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor, nn

from liveavatar.ops.attention import attend


@runtime_checkable
class Seams(Protocol):
    """The edges of a part; `axis` is that of the lines, -2 for rows and -1 for columns."""

    axis: int

    def mend(self, x: Tensor, width: int) -> None:
        """Write the neighbours' nearest lines over the outer `width` lines of a padded `x`; the rim keeps its zeros."""

    def gather(self, x: Tensor) -> Tensor:
        """[b, own positions, d] of every part to [b, all positions, d], valid until the next exchange."""
        ...


_SEAMS: ContextVar[Seams | None] = ContextVar("liveavatar_seams", default=None)


@contextmanager
def between(seams: Seams | None) -> Iterator[None]:
    """Inside, decoders whose layers are `divisible` work on a part; with None, on the whole."""
    token = _SEAMS.set(seams)
    try:
        yield
    finally:
        _SEAMS.reset(token)


def divided() -> bool:
    """Whether a part of a picture is at work, between seams."""
    return _SEAMS.get() is not None


def mended(conv: nn.Conv2d | nn.Conv3d, padded: Tensor) -> Tensor:
    """The padded input of a convolution of stride 1, its edges as the whole picture has them."""
    seams = _SEAMS.get()
    if seams is not None and (width := conv.kernel_size[seams.axis] // 2):
        seams.mend(padded, width)
    return padded


def make_divisible(decoder: nn.Module, attention: type[nn.Module]) -> None:
    """Let the 2D convolutions and attentions of a decoder work between seams; without any they do what they did."""
    for part in decoder.modules():
        if isinstance(part, nn.Conv2d):
            part._conv_forward = partial(_convolve, part)  # type: ignore[method-assign]
        elif isinstance(part, attention):
            part.forward = partial(_attend, part, part.forward)


def _convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if _SEAMS.get() is None or conv.kernel_size == (1, 1):
        return nn.Conv2d._conv_forward(conv, x, weight, bias)
    rows, columns = conv.kernel_size[0] // 2, conv.kernel_size[1] // 2
    return F.conv2d(mended(conv, F.pad(x, (columns, columns, rows, rows))), weight, bias)


def _attend(block: nn.Module, whole: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Attention of each frame's positions to all positions of that frame: own queries, everybody's keys and values."""
    seams = _SEAMS.get()
    if seams is None:
        return whole(x)
    frames = x.transpose(1, 2).flatten(0, 1)
    channels = frames.shape[1]
    own = block.to_qkv(block.norm(frames)).flatten(2).transpose(1, 2)  # type: ignore[operator]
    keys, values = seams.gather(own[..., channels:]).split(channels, dim=-1)
    seen = attend(own[..., :channels].unsqueeze(2), keys.unsqueeze(2), values.unsqueeze(2)).squeeze(2)
    seen = block.proj(seen.transpose(1, 2).unflatten(2, frames.shape[2:]))  # type: ignore[operator]
    return x + seen.unflatten(0, (x.shape[0], -1)).transpose(1, 2)
