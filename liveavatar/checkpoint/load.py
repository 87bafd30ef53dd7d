"""Bring resident modules to life: the encoders and the VAE, tensor by tensor, straight onto their device."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from liveavatar.checkpoint.pages import LARGE
from liveavatar.checkpoint.read import TensorSource, read_straight
from liveavatar.checkpoint.slab import allocate


def materialise(module: nn.Module, source: TensorSource, device: torch.device, dtype: torch.dtype) -> None:
    """Give every parameter of a module built on `meta` its values, rounded once to `dtype`.

    Shared parameters stay shared. Raises ValueError (from the source) where a tensor is missing or of another shape.
    """
    placed: dict[int, nn.Parameter] = {}
    for path, owner in module.named_modules():
        for name, parameter in list(owner._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in placed:
                full = f"{path}.{name}" if path else name
                placed[id(parameter)] = nn.Parameter(
                    _read(source, full, parameter.shape, dtype).to(device), requires_grad=False
                )
            owner._parameters[name] = placed[id(parameter)]
    stranded = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    if stranded:
        raise RuntimeError(f"buffers {stranded} of {type(module).__name__} were built on meta and have no source")
    module.eval()


def _read(source: TensorSource, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A tensor as `dtype` in host memory: large ones straight into their place, where the source can do that."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes >= LARGE and hasattr(source, "read_straight"):  # else a plan would count a room that nobody fills
        room = allocate(nbytes, torch.device("cpu"))
        if read_straight(source, name, shape, dtype, room, 0):
            return room.view(dtype).view(shape)
    return source.read(name, shape).to(dtype)


class Lent:
    """A text encoder on meta that is brought to life for each prompt and let go: between prompts it holds nothing."""

    def __init__(self, module: nn.Module, source: TensorSource, device: torch.device, dtype: torch.dtype) -> None:
        self.module, self.source, self.device, self.dtype = module, source, device, dtype
        self._absent = [(owner, dict(owner._parameters)) for owner in module.modules()]

    def encode(self, ids: Tensor) -> Tensor:
        """What the module's own `encode` gives."""
        materialise(self.module, self.source, self.device, self.dtype)
        try:
            return self.module.encode(ids)  # type: ignore[operator]
        finally:
            for owner, parameters in self._absent:
                owner._parameters.update(parameters)
