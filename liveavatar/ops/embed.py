"""Small arithmetic of the DiT: timestep sinusoids, norms, modulation, patches (semantics, 4)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def sinusoid(t: Float[Tensor, " rows"], channels: int) -> Float[Tensor, "rows channels"]:
    """Timestep features, first half cosine, second half sine; float64 inside, float32 out."""
    half = channels // 2
    exponent = torch.arange(half, dtype=torch.float64, device=t.device) / half
    angles = torch.outer(t.double(), 10_000.0**-exponent)
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float()


class RmsNorm(nn.Module):
    """Root-mean-square norm over the whole width (all heads together), with a learned weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        # the reciprocal root is a column: the width is read twice and written once, not four times as in rms_norm
        root = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = (root.square() / x.shape[-1] + self.eps).rsqrt()
        return (x * inverse).mul_(self.weight).to(x.dtype)


def plain_norm(x: Float[Tensor, "... d"], eps: float) -> Float[Tensor, "... d"]:
    """LayerNorm without learned parameters."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def by_group(x: Float[Tensor, "b tokens d"], groups: int) -> Float[Tensor, "b groups per d"]:
    """View the tokens as `groups` equal runs: those of one latent frame share their modulation."""
    return x.unflatten(1, (groups, -1))


def modulate(
    x: Float[Tensor, "b tokens d"], shift: Float[Tensor, "b groups d"], scale: Float[Tensor, "b groups d"]
) -> Float[Tensor, "b tokens d"]:
    """x * (1 + scale) + shift with one row of shift and scale per group of tokens, in float32."""
    runs = by_group(x.float(), shift.shape[1])
    return torch.addcmul(shift.unsqueeze(2), runs, 1 + scale.unsqueeze(2)).flatten(1, 2)


def gated_add(
    x: Float[Tensor, "b tokens d"], y: Float[Tensor, "b tokens d"], gate: Float[Tensor, "b groups d"]
) -> Float[Tensor, "b tokens d"]:
    """x + gate * y with one gate row per group of tokens, in float32."""
    groups = gate.shape[1]
    return torch.addcmul(by_group(x, groups), by_group(y.float(), groups), gate.unsqueeze(2)).flatten(1, 2)


def linear_float32(x: Tensor, layer: nn.Linear) -> Tensor:
    """A Linear computed in float32 whatever its storage: time embedding, head and audio encoder (semantics, 12)."""
    bias = None if layer.bias is None else layer.bias.float()
    return F.linear(x.float(), layer.weight.float(), bias)


def unpatchify(
    tokens: Float[Tensor, "b tokens values"], frames: int, rows: int, columns: int
) -> Float[Tensor, "b c frames h w"]:
    """Tokens of 2x2 latent pixels, channel fastest, back to a latent picture."""
    b, _, values = tokens.shape
    grid = tokens.view(b, frames, rows, columns, 2, 2, values // 4)
    return grid.permute(0, 6, 1, 2, 4, 3, 5).reshape(b, values // 4, frames, 2 * rows, 2 * columns)
