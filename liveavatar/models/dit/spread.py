"""How the tokens of a state are spread over ranks, as the units see it.

The model never learns of processes. A unit works on the tokens that its `Share` gives it; around self-attention the
share turns own tokens with all heads into all tokens with own heads, and back (Ulysses, arXiv:2309.14509).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Share(Protocol):
    """This rank's part of the tokens of one state; `own` are their places among all of them."""

    @property
    def own(self) -> slice: ...

    def to_heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[1, own tokens, heads, channels] each to [1, tokens, own heads, channels], valid until the next exchange."""
        ...

    def to_tokens(self, x: Tensor) -> Tensor:
        """[1, tokens, own heads, channels] back to [1, own tokens, heads, channels]."""
        ...

    def gather(self, x: Tensor) -> Tensor:
        """[1, own tokens, d] of every rank to [1, tokens, d] on every rank, valid until the next exchange."""
        ...


@runtime_checkable
class Spread(Protocol):
    """How tokens are divided; `degree` is into how many shares, and by how much the heads of caches are."""

    degree: int

    def share(self, tokens: int) -> Share: ...


@dataclass(frozen=True)
class Whole:
    """All tokens are here."""

    tokens: int | None = None

    @property
    def own(self) -> slice:
        return slice(0, self.tokens)

    def to_heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q, k, v

    def to_tokens(self, x: Tensor) -> Tensor:
        return x

    def gather(self, x: Tensor) -> Tensor:
        return x


class Alone:
    """Nothing is divided."""

    degree = 1

    def share(self, tokens: int) -> Whole:
        return Whole(tokens)


def chunks(total: int, parts: int) -> list[slice]:
    """`total` things in consecutive runs that differ by one at most, the longer ones first."""
    base, longer = divmod(total, parts)
    starts = [part * base + min(part, longer) for part in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(starts)]


@dataclass(frozen=True)
class Segment:
    """A run of own tokens with equally many of each of some latent frames."""

    frames: slice
    tokens: slice  # among the own ones

    @property
    def count(self) -> int:
        return self.frames.stop - self.frames.start

    def by_frame(self, x: Float[Tensor, "b own *d"]) -> Float[Tensor, "b f n *d"]:
        """These tokens of `x`, frame by frame: a view."""
        return x[:, self.tokens].unflatten(1, (self.count, -1))

    def rows(self, x: Float[Tensor, "rows *d"], actors: int) -> Float[Tensor, "chosen *d"]:
        """Of rows by actor and latent frame, those of its frames."""
        return x.unflatten(0, (actors, -1))[:, self.frames].flatten(0, 1)


def segments(own: slice, frame_tokens: int) -> list[Segment]:
    """Own tokens in up to three segments: the rest of a frame, whole frames, the beginning of another."""
    found, start = [], own.start
    while start < own.stop:
        frame, within = divmod(start, frame_tokens)
        whole = 0 if within else (own.stop - start) // frame_tokens
        stop = start + whole * frame_tokens if whole else min(own.stop, (frame + 1) * frame_tokens)
        tokens = slice(start - own.start, stop - own.start)
        found.append(Segment(slice(frame, frame + max(whole, 1)), tokens))
        start = stop
    return found
