"""Where tensors lie in a file: entries of a safetensors header, and the zip that `torch.save` writes.

The pickle of the latter is read with `weights_only` and no storage behind it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a tensor's numbers lie in its file; `stride` None stands for rows one after another."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype
    stride: tuple[int, ...] | None = None

    @property
    def span(self) -> int:
        """Bytes from the first number to the last."""
        if self.stride is None or 0 in self.shape:
            return math.prod(self.shape) * self.dtype.itemsize
        reach = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (reach + 1) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> Place:
        """The place of some rows of a tensor without strides."""
        each = math.prod(self.shape[1:]) * self.dtype.itemsize
        start, stop = min(start, self.shape[0]), min(stop, self.shape[0])
        return Place(self.offset + start * each, torch.Size((stop - start, *self.shape[1:])), self.dtype)


def placed(entry: Mapping[str, Any], base: int) -> Place:
    """The place that an entry of a safetensors header names, behind `base` bytes.

    Raises ValueError for one that contradicts itself, KeyError for a type that nobody knows.
    """
    begin, end = (int(value) for value in entry["data_offsets"])
    shape = torch.Size(int(size) for size in entry["shape"])
    place = Place(base + begin, shape, DTYPES[entry["dtype"]])
    if begin < 0 or end - begin != place.span:
        raise ValueError(f"a tensor of shape {list(shape)} in {end - begin} bytes")
    return place


def pickled(path: Path, key: str) -> dict[str, Place]:
    """What a `torch.save` file holds. Only tensors, numbers and the like are unpickled, and no storage is read."""
    try:
        with FakeTensorMode():  # knows of each storage where it begins in the file
            held = torch.load(path, weights_only=True)
    except Exception as error:  # pickle errors of many classes, and torch's own
        text = str(error)
        if "weights_only" in text.lower() or "Unsupported" in text:
            raise ValueError(
                f"{key}: {path} is a pickle that wants to run code, and is refused: convert it to safetensors where "
                "you trust it"
            ) from error
        size = path.stat().st_size
        raise ValueError(
            f"{key}: {path} ({size} bytes) is truncated, or no file that torch.save wrote: fetch it again"
        ) from error
    for wrapper in ("state_dict", "model", "model_state"):
        if isinstance(held, dict) and isinstance(held.get(wrapper), dict):
            held = held[wrapper]
    tensors = {str(name): value for name, value in held.items() if isinstance(value, Tensor)} if held else {}
    return {name: _stored(tensor) for name, tensor in tensors.items()}


def _stored(tensor: Tensor) -> Place:
    begin: Any = tensor.untyped_storage()._checkpoint_offset  # set by torch.load where the file is mapped
    offset = int(begin + tensor.storage_offset() * tensor.dtype.itemsize)
    return Place(offset, tensor.shape, tensor.dtype, None if tensor.is_contiguous() else tensor.stride())
