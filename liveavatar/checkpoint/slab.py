"""Slabs: all weights of a unit in one run of bytes, so that a unit moves in one copy and its parameters are views.

Parameters start at multiples of 256 bytes, wherever the slab lies, so that matrix products take the same path on every
strategy and give the same bits. The end is padded so that any number of ranks up to the one asked for gets equal parts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from liveavatar.checkpoint.pages import LARGE, fresh
from liveavatar.checkpoint.read import TensorSource, read_rows, read_straight

ALIGN = 256
"""Bytes: the cache line of every device here divides it, and so does the alignment of vector loads."""


@dataclass(frozen=True)
class Entry:
    """A parameter's place in its slab."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class SlabLayout:
    """Where each parameter of a unit, or of a part of one, lies in its slab.

    `nbytes` is a multiple of 256 bytes times `parts`.
    """

    entries: Mapping[str, Entry]
    nbytes: int
    parts: int

    @classmethod
    def of(
        cls, unit: nn.Module, dtype: torch.dtype, parts: int = 1, names: Collection[str] | None = None
    ) -> SlabLayout:
        """The layout of a unit's parameters (`names` alone, where given) as `dtype`, divisible into `parts` shards."""
        entries, end = {}, 0
        for name, parameter in unit.named_parameters():
            if names is not None and name not in names:
                continue
            entries[name] = Entry(end, parameter.shape, stored_as(name, parameter, dtype))
            end = _up(end + entries[name].nbytes, ALIGN)
        return cls(entries, _up(end, ALIGN * parts), parts)

    def views(self, slab: Tensor) -> dict[str, Tensor]:
        """The parameters as views of a slab (uint8, at least `nbytes` long)."""
        return {
            name: slab[e.offset : e.offset + e.nbytes].view(e.dtype).view(e.shape) for name, e in self.entries.items()
        }

    def fill(self, target: Tensor, source: TensorSource, name: str, start: int = 0) -> None:
        """Write the bytes `start` .. `start + len(target)` of the slab into `target`, reading only what lies there.

        `name` is that of the unit in the source; what a part has behind a slash, as in `blocks.3/prompt`, is not.
        """
        prefix, stop = name.partition("/")[0], start + target.numel()
        for path, entry in self.entries.items():
            low, high = max(start, entry.offset), min(stop, entry.offset + entry.nbytes)
            if low >= high:
                continue
            key, room = f"{prefix}.{path}", target[low - start : high - start]
            if read_straight(source, key, entry.shape, entry.dtype, room, low - entry.offset):
                continue
            rows = max(1, entry.shape[0] if entry.shape else 1)
            each = max(1, entry.nbytes // rows)
            first, last = (low - entry.offset) // each, -(-(high - entry.offset) // each)
            whole = not entry.shape or (first == 0 and last >= rows)
            tensor = source.read(key, entry.shape) if whole else read_rows(source, key, entry.shape, first, last)
            flat = tensor.to(entry.dtype).contiguous().view(-1).view(torch.uint8)
            begin = entry.offset + (0 if whole else first * each)
            room.copy_(flat[low - begin : high - begin])


ONE_BYTE = (torch.float8_e4m3fn, torch.int8)


def stored_as(name: str, parameter: Tensor, dtype: torch.dtype) -> torch.dtype:
    """What a parameter rests as where others rest as `dtype`: quantised matrices and their scales as they are."""
    return parameter.dtype if parameter.dtype in ONE_BYTE or name.rpartition(".")[2] == "scale" else dtype


def retype(module: nn.Module, dtype: torch.dtype) -> None:
    """Let the parameters of a module on meta be of the type in which they will rest."""
    for owner in module.modules():
        for name, parameter in list(owner._parameters.items()):
            if parameter is not None:
                kind = stored_as(name, parameter, dtype)
                owner._parameters[name] = nn.Parameter(parameter.data.to(kind), requires_grad=False)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def allocate(nbytes: int, device: torch.device, pinned: bool = False) -> Tensor:
    """The one place where room for weights is made: zeroed uint8 of exactly `nbytes`, aligned to 256 bytes."""
    fake = isinstance(torch.empty(0), FakeTensor)  # it lies nowhere
    if device.type == "cpu" and nbytes >= LARGE and not (pinned or fake):
        return fresh(nbytes)[:]  # an operation, so that those who follow them count the room
    room = torch.empty(nbytes + ALIGN, dtype=torch.uint8, device=device, pin_memory=pinned)
    start = 0 if fake else -room.data_ptr() % ALIGN
    return room.zero_()[start : start + nbytes]


def vacate(unit: nn.Module, dtype: torch.dtype, device: torch.device, names: Collection[str] | None = None) -> None:
    """Replace a unit's parameters (`names` alone, where given) by empty ones: what it is while they are elsewhere."""
    for path, module in unit.named_modules():
        for name, parameter in [(name, value) for name, value in module._parameters.items() if value is not None]:
            if names is not None and (f"{path}.{name}" if path else name) not in names:
                continue
            empty = torch.empty(0, dtype=stored_as(name, parameter, dtype), device=device)
            module._parameters[name] = nn.Parameter(empty, requires_grad=False)


def point(unit: nn.Module, views: Mapping[str, Tensor]) -> None:
    """Let these parameters of a unit be these views; nothing is copied."""
    for name, parameter in unit.named_parameters():
        if name in views:
            parameter.data = views[name]
