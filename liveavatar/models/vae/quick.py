"""The decoder's layers on a CPU, with fewer passes over memory; they compute what diffusers' own do, but for rounding.

A causal convolution is given one room with its past and its input in it: norm and SiLU write into that room, and zeros
at the rim are the convolution's own. Nothing is padded, joined or cloned on the way. Small pictures take oneDNN too.
An embedded codec spends nearly as long in such passes, and in pages of fresh memory, as in arithmetic.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, WanResidualBlock, WanRMS_norm
from torch import Tensor, nn

PAST = 2
"""Frames that a causal convolution looks back on."""

Cache = list[Any]
Usable = Callable[[Tensor, Cache | None], bool]

_PLAIN: ContextVar[bool] = ContextVar("liveavatar_plain_layers", default=False)


@contextmanager
def plain_layers(wanted: bool = True) -> Iterator[None]:
    """Inside, every layer computes as diffusers wrote it: for pictures whose last bits matter."""
    token = _PLAIN.set(wanted)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def make_quick(half: nn.Module, usable: Usable) -> None:
    """Let residual blocks and enlargements of a half work like this wherever `usable` says so of input and cache."""
    for part in half.modules():
        if isinstance(part, WanResidualBlock):
            part.forward = partial(_residual, part, usable)  # type: ignore[method-assign]
        elif isinstance(part, WanResample) and part.mode.startswith("upsample"):
            part.forward = partial(_enlarge, part, usable)  # type: ignore[method-assign]


def _short(part: nn.Module, usable: Usable, x: Tensor, cache: Cache | None) -> bool:
    """Whether a part may write over what it has made: nobody learns from it, and it is not to be exact."""
    learns = torch.is_grad_enabled() and (x.requires_grad or next(part.parameters()).requires_grad)
    return not (learns or _PLAIN.get()) and usable(x, cache)


def product(conv: nn.Conv2d | nn.Conv3d, x: Tensor, padding: list[int]) -> Tensor:
    """A convolution by oneDNN, which PyTorch itself takes by the number of numbers in the first four dimensions."""
    layout = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
    weight = conv.weight.contiguous(memory_format=layout)  # type: ignore[call-overload]  # small beside the picture
    args = (padding, list(conv.stride), list(conv.dilation), conv.groups)
    return torch.ops.aten.mkldnn_convolution(x, weight, conv.bias, *args)


def _normed(norm: WanRMS_norm, x: Tensor, out: Tensor) -> Tensor:
    """The layer's norm over channels, into `out`, whose frames follow one another in memory as those of `x` do.

    Channels are few: what loops over them is mostly overhead, so they are summed by a product and scaled by lines.
    """
    pixels = x.square().movedim(1, -1).reshape(-1, x.shape[1])
    length = torch.mv(pixels, pixels.new_ones(x.shape[1])).sqrt_().clamp_min_(1e-12)
    scale = length.reciprocal_().mul_(norm.scale).view(x.shape[0], 1, *x.shape[2:])
    torch.mul(x, scale, out=out)
    lines = out.movedim(1, -1).flatten(-2)  # a view: [b, t, H, W * c]
    lines.mul_(norm.gamma.flatten().repeat(x.shape[-1]))
    return out if isinstance(norm.bias, float) else out.add_(norm.bias)


def _room(x: Tensor, held: Any) -> tuple[Tensor, int]:
    """Memory for the past and for as many frames as `x` has, channels last; how many frames were held of the past.

    They stand in their place, behind zeros where there are fewer.
    """
    shape = (x.shape[0], x.shape[1], PAST + x.shape[2], *x.shape[3:])
    room = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last_3d)
    kept = held.shape[2] if isinstance(held, Tensor) else 0
    room[:, :, : PAST - kept] = 0
    if isinstance(held, Tensor):
        room[:, :, PAST - kept : PAST] = held
    return room, kept


def _causal(conv: nn.Conv3d, norm: WanRMS_norm, x: Tensor, cache: Cache, at: list[int]) -> Tensor:
    """Norm, SiLU and a causal convolution of a stream; its slot of the cache moves on."""
    number = x.shape[2]
    room, kept = _room(x, cache[at[0]])
    F.silu(_normed(norm, x, room[:, :, PAST:]), inplace=True)
    cache[at[0]] = room[:, :, -min(PAST, kept + number) :].clone()
    at[0] += 1
    return product(conv, room, [0, conv.kernel_size[1] // 2, conv.kernel_size[2] // 2])


def _residual(
    block: WanResidualBlock,
    usable: Usable,
    x: Tensor,
    feat_cache: Cache | None = None,
    feat_idx: list[int] | None = None,
) -> Tensor:
    at = [0] if feat_idx is None else feat_idx
    if not _short(block, usable, x, feat_cache):
        return WanResidualBlock.forward(block, x, feat_cache, at)
    assert feat_cache is not None
    beside = block.conv_shortcut(x)
    x = _causal(block.conv1, block.norm1, x, feat_cache, at)
    return _causal(block.conv2, block.norm2, x, feat_cache, at).add_(beside)


def _enlarge(
    part: WanResample, usable: Usable, x: Tensor, feat_cache: Cache | None = None, feat_idx: list[int] | None = None
) -> Tensor:
    """Twice as many rows and columns, and frames where the part has a convolution over time and a past."""
    at = [0] if feat_idx is None else feat_idx
    if not _short(part, usable, x, feat_cache):
        return WanResample.forward(part, x, feat_cache, at)
    assert feat_cache is not None
    times = 1
    if part.mode == "upsample3d":
        held = feat_cache[at[0]]
        if held is None:  # the first frame of a stream stays one
            feat_cache[at[0]] = "Rep"
        else:
            x, times = _in_time(part, x, feat_cache, at[0]), 2
        at[0] += 1
    frames = x.movedim(1, -1).unflatten(-1, (times, -1))  # [b, t, h, w, times, c]
    b, t, h, w, _, c = frames.shape
    wide = torch.empty((b, t, times, h, 2, w, 2, c), dtype=x.dtype)
    wide.copy_(frames.permute(0, 1, 4, 2, 3, 5)[:, :, :, :, None, :, None].expand_as(wide))
    pictures = wide.view(b * t * times, 2 * h, 2 * w, c).permute(0, 3, 1, 2)
    conv = part.get_submodule("resample.1")
    assert isinstance(conv, nn.Conv2d)
    found = product(conv, pictures, list(conv.padding))  # type: ignore[arg-type]
    return found.unflatten(0, (b, t * times)).movedim(1, 2)


def _in_time(part: WanResample, x: Tensor, cache: Cache, at: int) -> Tensor:
    """The convolution over time: two frames' channels of each, one after the other."""
    room, _ = _room(x, cache[at])
    room[:, :, PAST:] = x
    cache[at] = room[:, :, -PAST:].clone()
    return product(part.time_conv, room, [0, 0, 0])
