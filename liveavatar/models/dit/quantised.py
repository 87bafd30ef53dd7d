"""Linear layers of the DiT whose matrices rest in one byte a number.

Payload and scales are parameters like others, so that they lie in slabs, shard and stream. Left as they are: `embed`
(timestep, prompt and voice come in there once) and `head` (small, and seen in every pixel), norms, modulation, biases.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from liveavatar.ops.quantise import KINDS, scaled_linear

INSIDE = ("blocks.", "injectors.", "adain.")


class QuantLinear(nn.Module):
    """`nn.Linear` with a payload [out, in], a scale [out, 1] in float32, and a bias."""

    def __init__(self, inputs: int, outputs: int, kind: str, bias: nn.Parameter) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        payload = torch.empty(outputs, inputs, dtype=KINDS[kind], device=bias.device)
        self.weight = nn.Parameter(payload, requires_grad=False)
        self.scale = nn.Parameter(torch.empty(outputs, 1, dtype=torch.float32, device=bias.device), False)
        self.bias = bias

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        return scaled_linear(x, self.weight, self.scale, self.bias)


def quantise_linears(dit: nn.Module, kind: str) -> dict[str, torch.Size]:
    """Replace the linear layers between `embed` and `head`, on meta; returns the shapes of their matrices by name."""
    found = {
        name: part for name, part in dit.named_modules() if isinstance(part, nn.Linear) and name.startswith(INSIDE)
    }
    for name, part in found.items():
        owner = dit.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], QuantLinear(part.in_features, part.out_features, kind, part.bias))
    return {f"{name}.weight": torch.Size((part.out_features, part.in_features)) for name, part in found.items()}
