"""Key and value caches of a stream: one ring per denoising step, one sink for all steps, one scratch for attention.

A ring holds the last `frames` latent frames at one noise level, keys already rotated to their absolute positions. The
sink holds reference and motion tokens, keys not yet rotated, because the reference moves along with the stream. Where
a position falls is computed from the absolute frame number, so caches carry no counters (semantics, 5).
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Complex64, Float
from torch import Tensor

from liveavatar.ops.rope import rotate


@dataclass(frozen=True)
class CacheShape:
    """Sizes that all caches of one stream share; `frame_tokens` and `sink_tokens` follow from the picture's grid."""

    layers: int
    heads: int
    channels: int
    frame_tokens: int
    sink_tokens: int
    frames: int = 12

    @property
    def ring_tokens(self) -> int:
        return self.frames * self.frame_tokens

    def zeros(self, tokens: int, like: Tensor, layers: int = 1) -> Tensor:
        shape = (layers, 1, tokens, self.heads, self.channels)
        return torch.zeros(shape, dtype=like.dtype, device=like.device)


class RingCache:
    """Keys and values of one step: `[layers, 1, frames * n, heads, channels]` each, in ring order.

    `origin` is the first frame the stream ever writes: slots before it are empty.
    """

    def __init__(self, shape: CacheShape, like: Tensor, origin: int = 0) -> None:
        self.shape, self.origin = shape, origin
        self.k = shape.zeros(shape.ring_tokens, like, shape.layers)
        self.v = torch.zeros_like(self.k)

    def write(self, layer: int, frame: int, k: Tensor, v: Tensor) -> None:
        """Put the tokens of a block whose first latent frame is `frame` into their slots, over the oldest ones."""
        start = frame % self.shape.frames * self.shape.frame_tokens
        self.k[layer, :, start : start + k.shape[1]] = k
        self.v[layer, :, start : start + v.shape[1]] = v

    def spans(self, end: int, window: int) -> list[slice]:
        """Token ranges of the ring that hold the last `window` frames before frame `end` (-1: all that fit)."""
        n, size = self.shape.frame_tokens, self.shape.frames
        length = min(end - self.origin, size if window < 0 else min(window, size))
        first = (end - length) % size
        if length == size:
            return [slice(0, size * n)]
        if first + length <= size:
            return [slice(first * n, (first + length) * n)]
        return [slice(first * n, size * n), slice(0, (first + length - size) * n)]


class SinkCache:
    """Keys (before rotation) and values of the condition tokens, the same for every step: one copy."""

    def __init__(self, shape: CacheShape, like: Tensor) -> None:
        self.k = shape.zeros(shape.sink_tokens, like, shape.layers)
        self.v = torch.zeros_like(self.k)


class Scratch:
    """Room for the contiguous keys and values of one attention call, shared by all layers and steps."""

    def __init__(self, shape: CacheShape, like: Tensor) -> None:
        tokens = shape.sink_tokens + shape.ring_tokens
        self.k = shape.zeros(tokens, like)[0]
        self.v = torch.zeros_like(self.k)


class StreamCaches:
    """All caches of one stream. `like` gives dtype and device."""

    def __init__(self, shape: CacheShape, steps: int, like: Tensor, origin: int = 0) -> None:
        self.shape = shape
        self.rings = [RingCache(shape, like, origin) for _ in range(steps)]
        self.sink = SinkCache(shape, like)
        self.scratch = Scratch(shape, like)

    @property
    def nbytes(self) -> int:
        held = [(c.k, c.v) for c in (*self.rings, self.sink, self.scratch)]
        return sum(t.nbytes for pair in held for t in pair)


@runtime_checkable
class CacheView(Protocol):
    """What a block's self-attention sees of the past: hand over fresh q, k, v; get what is to be attended."""

    def exchange(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True)
class SinkView:
    """The prefill: condition tokens see one another only, and leave their keys and values in the sink."""

    sink: SinkCache
    turns: Complex64[Tensor, "tokens pairs"]

    def exchange(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.sink.k[layer] = k
        self.sink.v[layer] = v
        return rotate(q, self.turns), rotate(k, self.turns), v


@dataclass(frozen=True)
class StreamView:
    """A cell: its tokens go into the ring of their step and see the ring's valid part and the whole sink.

    The sink is rotated at every read, for the reference keeps its distance from the moving block.
    """

    ring: RingCache
    sink: SinkCache
    scratch: Scratch
    frame: int
    frames: int
    turns: Complex64[Tensor, "tokens pairs"]
    sink_turns: Complex64[Tensor, "sink pairs"]
    window: int = -1

    def exchange(
        self,
        layer: int,
        q: Float[Tensor, "b tokens heads channels"],
        k: Float[Tensor, "b tokens heads channels"],
        v: Float[Tensor, "b tokens heads channels"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.ring.write(layer, self.frame, rotate(k, self.turns), v)
        end = self.sink.k.shape[2]
        self.scratch.k[:, :end] = rotate(self.sink.k[layer], self.sink_turns)
        self.scratch.v[:, :end] = self.sink.v[layer]
        for span in self.ring.spans(self.frame + self.frames, self.window):
            start, end = end, end + span.stop - span.start
            self.scratch.k[:, start:end] = self.ring.k[layer, :, span]
            self.scratch.v[:, start:end] = self.ring.v[layer, :, span]
        return rotate(q, self.turns), self.scratch.k[:, :end], self.scratch.v[:, :end]
