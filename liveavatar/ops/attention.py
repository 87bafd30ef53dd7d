"""Attention behind one signature: token-major tensors in, token-major tensors out."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def attend(
    q: Float[Tensor, "b queries heads channels"],
    k: Float[Tensor, "b keys heads channels"],
    v: Float[Tensor, "b keys heads channels"],
) -> Float[Tensor, "b queries heads channels"]:
    """Softmax attention, scale 1/sqrt(channels), no mask: the order of the keys does not matter.

    The fused kernels take the transposed views as they are, so caches stay token-major and nothing is copied here.
    """
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)
