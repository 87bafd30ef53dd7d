"""Where tensors come from, asked one by one under our own parameter names: no model is ever whole in host memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


class TensorSource(Protocol):
    """A model's tensors by our names. `origin` says in a word where they come from; it is logged with every run."""

    @property
    def origin(self) -> str: ...

    def read(self, name: str, shape: torch.Size) -> Tensor: ...


def expect(source: TensorSource, shapes: Mapping[str, torch.Size]) -> None:
    """Tell a source which tensors the model has, before any is read: one that knows better can refuse here.

    Raises ValueError where the source holds something that this model has no place for.
    """
    check = getattr(source, "expect", None)
    if check is not None:
        check(shapes)


def read_rows(source: TensorSource, name: str, shape: torch.Size, start: int, stop: int) -> Tensor:
    """Rows `start` .. `stop` of a tensor: alone, where the source can do that, else out of the whole."""
    partial = getattr(source, "read_rows", None)
    return source.read(name, shape)[start:stop] if partial is None else partial(name, shape, start, stop)


def read_straight(
    source: TensorSource, name: str, shape: torch.Size, dtype: torch.dtype, room: Tensor, start: int
) -> bool:
    """Read the bytes from `start` on of a tensor that rests as `dtype` into `room` (uint8), with no whole copy between.

    False, and nothing is read, where that cannot be: the source makes its numbers or keeps rows apart, or `room` is not
    in this machine's memory.
    """
    straight = getattr(source, "read_straight", None)
    if straight is None or room.device.type != "cpu" or isinstance(room, FakeTensor):
        return False
    return straight(name, shape, dtype, room, start)


class RandomWeights:
    """Seeded random weights: each tensor is a pure function of (seed, name, shape), so ranks can make their own parts.

    Every layer gets values that let its input through, including those that the real model starts at zero: a picture
    made with them is noise, but it depends on everything that it should depend on.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @property
    def origin(self) -> str:
        return "random"

    def read(self, name: str, shape: torch.Size) -> Tensor:
        place = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        key = np.array([self.seed % 2**64, place], dtype=np.uint64)
        values = np.random.Generator(np.random.Philox(key=key)).standard_normal(math.prod(shape), dtype=np.float32)
        tensor = torch.from_numpy(values).reshape(shape)
        return self._scaled(name, tensor)

    @staticmethod
    def _scaled(name: str, values: Tensor) -> Tensor:
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "bias":
            return values * 0.02
        if values.dim() == 1 or leaf in ("gamma", "weights") or "norm" in name.rsplit(".", 2)[-2:][0]:
            return 1 + values * 0.02  # gains of norms, and the audio encoder's layer weights
        if leaf == "modulation":
            return values * 0.3
        fan_in = math.prod(values.shape[1:])
        return values / math.sqrt(fan_in)
