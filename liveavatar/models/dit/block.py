"""A transformer block: self-attention over caches, text cross-attention, feed-forward, modulated by the timestep.

Semantics, 4. The residual runs in float32 inside a block and is rounded to the storage type at its end (12).
What lies between two attentions is a stretch: a function of a module and tensors alone, which may be compiled.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from liveavatar.models.dit.cache import CacheView
from liveavatar.models.dit.prepared import Prepared, PreparedPrompt
from liveavatar.models.dit.spread import Share
from liveavatar.models.dit.state import CellState, Stretches, Unit, split_heads
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

    def project(self, x: Float[Tensor, "b own d"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [b, own, heads, channels]; keys are not rotated yet."""
        q = split_heads(self.norm_q(self.q(x)), self.heads)
        k = split_heads(self.norm_k(self.k(x)), self.heads)
        return q, k, split_heads(self.v(x), self.heads)

    def see(self, q: Tensor, k: Tensor, v: Tensor, cache: CacheView, layer: int, share: Share) -> Tensor:
        """What the own tokens see, [b, own, d], before the matrix `o`."""
        seen = self.attend(*cache.exchange(layer, *share.to_heads(q, k, v)))
        return share.to_tokens(seen).flatten(2)


class CrossAttention(Projections):
    """Attention to a context: the words of the prompt, or the voice of one latent frame."""

    cold = ("k", "v", "norm_k")
    """What sees the context only."""

    def pair(self, context: Float[Tensor, "b words d"]) -> tuple[Tensor, Tensor]:
        """Keys and values of a context, [b, words, heads, channels]."""
        return split_heads(self.norm_k(self.k(context)), self.heads), split_heads(self.v(context), self.heads)

    def queries(self, x: Float[Tensor, "b tokens d"]) -> Float[Tensor, "b tokens heads channels"]:
        return split_heads(self.norm_q(self.q(x)), self.heads)

    def see(self, q: Tensor, pair: tuple[Tensor, Tensor]) -> Float[Tensor, "b tokens d"]:
        """What the tokens see of the context, before the matrix `o`."""
        return self.attend(q, *pair).flatten(2)

    stretches: ClassVar[Stretches] = (queries,)

    def forward(self, x: Float[Tensor, "b tokens d"], pair: tuple[Tensor, Tensor]) -> Float[Tensor, "b tokens d"]:
        (queries,) = self.stretches
        return self.o(self.see(queries(self, x), pair))


class FeedForward(nn.Sequential):
    """Linear, tanh-GELU, Linear; numbered 0 and 2 as in the checkpoint."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, dim))


def _enter(block: "Block", x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the tokens to queries, keys and values."""
    shift, scale = rows[:, :, 0], rows[:, :, 1]
    return block.self_attn.project(modulate(plain_norm(x, block.eps), shift, scale).to(block.modulation.dtype))


def _hear(block: "Block", x: Tensor, seen: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What was seen joins the tokens, in float32 from here on; with their queries to the words."""
    x = gated_add(x.float(), block.self_attn.o(seen), rows[:, :, 2])
    norm = block.norm3
    words = F.layer_norm(x.to(block.modulation.dtype), x.shape[-1:], norm.weight, norm.bias, block.eps)
    return x, block.cross_attn.queries(words)


def _feed(block: "Block", x: Tensor, rows: Tensor) -> Tensor:
    """The feed-forward, and back to the storage type."""
    shift, scale, gate = rows[:, :, 3], rows[:, :, 4], rows[:, :, 5]
    y = modulate(plain_norm(x, block.eps), shift, scale).to(block.modulation.dtype)
    return gated_add(x, block.ffn(y), gate).to(block.modulation.dtype)


class Block(Unit):
    """Transformer block number `layer`."""

    cold: ClassVar = {"prompt": [f"cross_attn.{module}" for module in CrossAttention.cold]}
    stretches: ClassVar[Stretches] = (_enter, _hear, _feed)

    def __init__(self, layer: int, dim: int, ffn_dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.layer, self.eps = layer, eps
        self.modulation = nn.Parameter(torch.zeros(1, 6, dim))
        self.self_attn = SelfAttention(dim, heads, eps)
        self.norm3 = nn.LayerNorm(dim, eps)
        self.cross_attn = CrossAttention(dim, heads, eps)
        self.ffn = FeedForward(dim, ffn_dim)

    def forward(self, state: CellState) -> CellState:
        assert state.modulation is not None
        enter, hear, feed = self.stretches
        rows = self.modulation.float().unsqueeze(1) + state.modulation
        q, k, v = enter(self, state.hidden, rows)
        seen = self.self_attn.see(q, k, v, state.cache, self.layer, state.share)
        del q, k, v
        x, q = hear(self, state.hidden, seen, rows)
        del seen
        x = x + self.cross_attn.o(self.cross_attn.see(q, self._pair(state)))
        del q
        state.x = feed(self, x, rows)
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
