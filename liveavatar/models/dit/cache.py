"""Key and value caches of a stream: one ring per denoising step, one sink for all steps, one scratch for attention.

A ring holds the last `frames` latent frames at one noise level, keys already rotated to their absolute positions. The
sink holds reference and motion tokens, keys not yet rotated, because the reference moves along with the stream. Where
a position falls is computed from the absolute frame number, so caches carry no counters (semantics, 5).
"""

import weakref
from collections.abc import Sequence
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
    first_layer: int = 0

    def row(self, layer: int) -> int:
        """Where a layer's tensors lie: a stage of a pipeline holds those of its own layers only."""
        return layer - self.first_layer

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

    def place(self, frame: int, frames: int) -> slice:
        """Where in the ring the tokens of a block lie whose first latent frame is `frame`."""
        start = frame % self.shape.frames * self.shape.frame_tokens
        return slice(start, start + frames * self.shape.frame_tokens)

    def write(self, layer: int, frame: int, k: Tensor, v: Tensor) -> None:
        """Put a block's tokens into their place, over the oldest ones."""
        place = self.place(frame, k.shape[1] // self.shape.frame_tokens)
        row = self.shape.row(layer)
        self.k[row, :, place] = k
        self.v[row, :, place] = v

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
        self.shape = shape
        self.k = shape.zeros(shape.sink_tokens, like, shape.layers)
        self.v = torch.zeros_like(self.k)

    def another(self) -> "SinkCache":
        """A second buffer, for a new sink while blocks in flight still see this one."""
        return SinkCache(self.shape, self.k)


class Scratch:
    """Room for the contiguous keys and values of one attention call, shared by all layers and steps.

    The sink comes first, then the ring's valid part in ring order.
    """

    def __init__(self, shape: CacheShape, like: Tensor) -> None:
        tokens = shape.sink_tokens + shape.ring_tokens if shape.layers else 0
        self.k = shape.zeros(tokens, like)[0]
        self.v = torch.zeros_like(self.k)

    @property
    def tensors(self) -> list[Tensor]:
        return [self.k, self.v]

    def begin(self, views: "Sequence[StreamView]", layers: range) -> None:
        """A pass is about to start, in which each of these layers serves all these cells, in order."""

    def assemble(self, view: "StreamView", layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put a cell's rotated keys and its values into its ring; give all that the cell may attend to."""
        view.ring.write(layer, view.frame, k, v)
        row = view.ring.shape.row(layer)
        end = view.put_sink(layer, self.k, self.v)
        for span in view.spans():
            start, end = end, end + span.stop - span.start
            self.k[:, start:end] = view.ring.k[row, :, span]
            self.v[:, start:end] = view.ring.v[row, :, span]
        return self.k[:, :end], self.v[:, :end]


class StreamCaches:
    """All caches of one stream, for the steps that are taken here. `like` gives dtype and device."""

    def __init__(self, shape: CacheShape, steps: range | int, like: Tensor, origin: int = 0) -> None:
        self.shape = shape
        self.steps = range(steps) if isinstance(steps, int) else steps
        self._sinks: weakref.WeakSet[SinkCache] = weakref.WeakSet()
        self.sink = SinkCache(shape, like)
        self.rings, self.scratch = self._rooms(like, origin)

    def _rooms(self, like: Tensor, origin: int) -> tuple[list[RingCache], Scratch]:
        """The rings of all steps, and the room in which attention finds its keys and values."""
        return [RingCache(self.shape, like, origin) for _ in self.steps], Scratch(self.shape, like)

    @property
    def sink(self) -> SinkCache:
        """The sink of the newest block; blocks in flight may still hold the one before."""
        return self._sink

    @sink.setter
    def sink(self, sink: SinkCache) -> None:
        self._sink = sink
        self._sinks.add(sink)

    def ring(self, step: int) -> RingCache:
        """The ring of a step."""
        return self.rings[step - self.steps.start]

    @property
    def nbytes(self) -> int:
        """Bytes on the device that computes."""
        held = [self.sink.k, self.sink.v, *self.scratch.tensors]
        held += [tensor for ring in self.rings for tensor in (ring.k, ring.v)]
        return sum(tensor.nbytes for tensor in held)

    def held(self) -> dict[str, tuple[int, int]]:
        """Bytes by part, (on the device, in host memory); a sink that a block in flight still sees is counted."""
        sinks = sum(sink.k.nbytes + sink.v.nbytes for sink in self._sinks)
        return {
            "caches": (sum(ring.k.nbytes + ring.v.nbytes for ring in self.rings), 0),
            "sink": (sinks, 0),
            "scratch": (sum(tensor.nbytes for tensor in self.scratch.tensors), 0),
        }


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
        row = self.sink.shape.row(layer)
        self.sink.k[row] = k
        self.sink.v[row] = v
        return rotate(q, self.turns), rotate(k, self.turns), v


@dataclass(frozen=True, eq=False)
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
        keys, values = self.scratch.assemble(self, layer, rotate(k, self.turns), v)
        return rotate(q, self.turns), keys, values

    def spans(self) -> list[slice]:
        """The parts of the ring that this cell may see, its own tokens included."""
        return self.ring.spans(self.frame + self.frames, self.window)

    def put_sink(self, layer: int, k: Tensor, v: Tensor) -> int:
        """Write the sink, rotated for this cell, to the front of some room; returns where it ends."""
        row, end = self.sink.shape.row(layer), self.sink.k.shape[2]
        k[:, :end] = rotate(self.sink.k[row], self.sink_turns)
        v[:, :end] = self.sink.v[row]
        return end
