"""LoRA arithmetic on bare tensors; reading files and choosing targets is `checkpoint.lora`'s work."""

from jaxtyping import Float
from torch import Tensor


def merge(
    weight: Float[Tensor, "out in"],
    down: Float[Tensor, "rank in"],
    up: Float[Tensor, "out rank"],
    scale: float,
) -> Float[Tensor, "out in"]:
    """weight + scale * up @ down, in float32: whoever places the sum rounds it, once (semantics, 9)."""
    return weight.float() + scale * (up.float() @ down.float())
