"""A transformer block: self-attention over caches, text cross-attention, feed-forward, modulated by the timestep.

Semantics, 4. The residual runs in float32 inside a block and is rounded to the storage type at its end (12).
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from liveavatar.models.dit.cache import CacheView
from liveavatar.models.dit.prepared import Prepared, PreparedPrompt
from liveavatar.models.dit.spread import Share
from liveavatar.models.dit.state import CellState, Unit, split_heads
from liveavatar.ops.attention import Attend, attend
from liveavatar.ops.embed import RmsNorm, gated_add, modulate, plain_norm


class Projections(nn.Module):
    """The q, k, v, o matrices of an attention, with norms of q and k over the full width."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RmsNorm(dim, eps)
        self.norm_k = RmsNorm(dim, eps)
        self.attend: Attend = attend


class SelfAttention(Projections):
    """Attention to the block's own tokens and to what the cache view holds."""

    def forward(
        self, x: Float[Tensor, "b own d"], cache: CacheView, layer: int, share: Share
    ) -> Float[Tensor, "b own d"]:
        q = split_heads(self.norm_q(self.q(x)), self.heads)
        k = split_heads(self.norm_k(self.k(x)), self.heads)
        v = split_heads(self.v(x), self.heads)
        seen = self.attend(*cache.exchange(layer, *share.to_heads(q, k, v)))
        return self.o(share.to_tokens(seen).flatten(2))


class CrossAttention(Projections):
    """Attention to a context: the words of the prompt, or the voice of one latent frame."""

    cold = ("k", "v", "norm_k")
    """What sees the context only."""

    def pair(self, context: Float[Tensor, "b words d"]) -> tuple[Tensor, Tensor]:
        """Keys and values of a context, [b, words, heads, channels]."""
        return split_heads(self.norm_k(self.k(context)), self.heads), split_heads(self.v(context), self.heads)

    def forward(self, x: Float[Tensor, "b tokens d"], pair: tuple[Tensor, Tensor]) -> Float[Tensor, "b tokens d"]:
        q = split_heads(self.norm_q(self.q(x)), self.heads)
        return self.o(self.attend(q, *pair).flatten(2))


class FeedForward(nn.Sequential):
    """Linear, tanh-GELU, Linear; numbered 0 and 2 as in the checkpoint."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, dim))


class Block(Unit):
    """Transformer block number `layer`."""

    cold: ClassVar = {"prompt": [f"cross_attn.{module}" for module in CrossAttention.cold]}

    def __init__(self, layer: int, dim: int, ffn_dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.layer, self.eps = layer, eps
        self.modulation = nn.Parameter(torch.zeros(1, 6, dim))
        self.self_attn = SelfAttention(dim, heads, eps)
        self.norm3 = nn.LayerNorm(dim, eps)
        self.cross_attn = CrossAttention(dim, heads, eps)
        self.ffn = FeedForward(dim, ffn_dim)

    def forward(self, state: CellState) -> CellState:
        store = self.modulation.dtype
        assert state.modulation is not None
        rows = self.modulation.float().unsqueeze(1) + state.modulation
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = rows.unbind(2)

        x = state.hidden
        y = modulate(plain_norm(x, self.eps), shift_a, scale_a).to(store)
        x = gated_add(x.float(), self.self_attn(y, state.cache, self.layer, state.share), gate_a)
        words = F.layer_norm(x.to(store), x.shape[-1:], self.norm3.weight, self.norm3.bias, self.eps)
        x = x + self.cross_attn(words, self._pair(state))
        y = modulate(plain_norm(x, self.eps), shift_f, scale_f).to(store)
        x = gated_add(x, self.ffn(y), gate_f)

        state.x = x.to(store)
        return state

    def prepare(self, made: Prepared) -> None:
        assert isinstance(made, PreparedPrompt)
        made.keep_pair(self.layer, self.cross_attn.pair(made.take("text")))

    def _pair(self, state: CellState) -> tuple[Tensor, Tensor]:
        """Keys and values of the prompt."""
        if state.prompt is not None:
            return state.prompt.pair(self.layer)
        assert state.text is not None
        return self.cross_attn.pair(state.text)
