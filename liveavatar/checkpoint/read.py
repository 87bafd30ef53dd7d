"""Where tensors come from, asked one by one under our own parameter names: no model is ever whole in host memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from liveavatar.checkpoint.keymap import KeyMap


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


class SafetensorsWeights:
    """Tensors of one safetensors file under published names, found through a key map.

    Raises ValueError when the file is missing or unreadable, or lacks a tensor that the model has.
    """

    def __init__(self, path: Path, keymap: KeyMap) -> None:
        self.path, self.keymap = Path(path), keymap
        if not self.path.is_file():
            raise ValueError(f"weights file {self.path} does not exist: check weights.dir")
        try:
            self._file = safe_open(self.path, framework="pt")
        except Exception as error:  # safetensors raises a class of its own making
            raise ValueError(f"weights file {self.path} is not a readable safetensors file: {error}") from error
        try:
            self._published = keymap.rename({name: name for name in self._file.keys()})  # noqa: SIM118 - not a dict
        except KeyError as error:
            raise ValueError(f"{self.path}: {error.args[0]}") from error

    @property
    def origin(self) -> str:
        return self.path.name

    def names(self) -> Iterator[str]:
        """Our names of everything in the file, ignored entries left out."""
        return iter(self._published)

    def read(self, name: str, shape: torch.Size) -> Tensor:
        if name not in self._published:
            raise ValueError(
                f"{self.path} holds no tensor {self.keymap.to_published(name)!r}, which the model needs: "
                "is it a checkpoint of this model?"
            )
        tensor = self._file.get_tensor(self._published[name])
        if tensor.shape != shape:
            raise ValueError(
                f"{self.path}: {self._published[name]!r} has shape {list(tensor.shape)}, but the model of this "
                f"configuration wants {list(shape)}: does model=… match the checkpoint?"
            )
        return tensor
