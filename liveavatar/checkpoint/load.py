"""Bring resident modules to life: the encoders and the VAE, tensor by tensor, straight onto their device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from liveavatar.checkpoint.read import TensorSource


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
                values = source.read(full, parameter.shape).to(device=device, dtype=dtype)
                placed[id(parameter)] = nn.Parameter(values, requires_grad=False)
            owner._parameters[name] = placed[id(parameter)]
    stranded = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    if stranded:
        raise RuntimeError(f"buffers {stranded} of {type(module).__name__} were built on meta and have no source")
    module.eval()


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
