"""Ulysses: ranks share each cell by sequence, and the heads of every cache (arXiv:2309.14509).

A rank runs norms, projections, cross-attention and feed-forward on its run of the tokens. For self-attention it trades
its tokens with all heads for all tokens with its heads, so that rings, sink and scratch hold its heads alone.
"""

from __future__ import annotations

from torch import Tensor

from liveavatar.models.dit.spread import chunks
from liveavatar.strategies.exchange import Exchange


class Ulysses:
    """The model's `Spread` over the ranks of an exchange."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange, self.degree = exchange, exchange.size
        self._shares: dict[int, TokenShare] = {}

    def share(self, tokens: int) -> TokenShare:
        if tokens not in self._shares:
            self._shares[tokens] = TokenShare(self.exchange, tokens)
        return self._shares[tokens]


class TokenShare:
    """A consecutive run of `tokens`; runs of ranks differ by one token at most."""

    def __init__(self, exchange: Exchange, tokens: int) -> None:
        self.exchange = exchange
        runs = chunks(tokens, exchange.size)
        self.own = runs[exchange.rank]
        self.sizes = [run.stop - run.start for run in runs]
        self.alike = [self.sizes[exchange.rank]] * exchange.size

    def to_heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size = self.exchange.size
        _, own, heads, channels = q.shape
        leaving = self.exchange.leaving((size, own, 3, heads // size, channels), q)
        for i, x in enumerate((q, k, v)):
            leaving[:, :, i] = x[0].unflatten(1, (size, -1)).transpose(0, 1)
        came = self.exchange.swap(leaving.flatten(0, 1), self.alike, self.sizes).unsqueeze(0)
        return came[:, :, 0], came[:, :, 1], came[:, :, 2]

    def to_tokens(self, x: Tensor) -> Tensor:
        leaving = self.exchange.leaving(x.shape[1:], x).copy_(x[0])
        came = self.exchange.swap(leaving, self.sizes, self.alike)
        return came.unflatten(0, (self.exchange.size, -1)).transpose(0, 1).flatten(1, 2).unsqueeze(0)

    def gather(self, x: Tensor) -> Tensor:
        copies = x.expand(self.exchange.size, -1, -1)
        leaving = self.exchange.leaving(copies.shape, x).copy_(copies)
        return self.exchange.swap(leaving.flatten(0, 1), self.alike, self.sizes).unsqueeze(0)
