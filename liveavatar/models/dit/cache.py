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

from liveavatar.ops.quantise import KINDS, give_back, keep_small
from liveavatar.ops.rope import rotate


@dataclass(frozen=True)
class CacheShape:
    """Sizes that all caches of one stream share; `frame_tokens` and `sink_tokens` follow from the picture's grid.

    kind: `fp8` or `int8`: rings and sink rest in one byte a number, with a float32 scale for each head of a token;
    None: as they are.
    """

    layers: int
    heads: int
    channels: int
    frame_tokens: int
    sink_tokens: int
    frames: int = 12
    first_layer: int = 0
    kind: str | None = None

    def row(self, layer: int) -> int:
        """Where a layer's tensors lie: a stage of a pipeline holds those of its own layers only."""
        return layer - self.first_layer

    @property
    def ring_tokens(self) -> int:
        return self.frames * self.frame_tokens

    def zeros(self, tokens: int, like: Tensor, layers: int = 1) -> Tensor:
        shape = (layers, 1, tokens, self.heads, self.channels)
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    def resting(self, tokens: int, like: Tensor, layers: int) -> list[Tensor]:
        """Rooms in which keys and values of so many tokens rest: k and v; of a small kind, the scales of both too."""
        if self.kind is None:
            return [self.zeros(tokens, like, layers) for _ in range(2)]
        sizes = (layers, 1, tokens, self.heads)
        kinds = ((KINDS[self.kind], self.channels), (torch.float32, 1))
        return [torch.zeros((*sizes, last), dtype=kind, device=like.device) for kind, last in kinds for _ in range(2)]


class Kept:
    """Keys and values at rest, `[layers, 1, tokens, heads, channels]` each, in rooms as of `CacheShape.resting`."""

    def __init__(self, shape: CacheShape, rooms: Sequence[Tensor]) -> None:
        self.shape, self.tensors = shape, list(rooms)

    @property
    def k(self) -> Tensor:
        return self.tensors[0]

    @property
    def v(self) -> Tensor:
        return self.tensors[1]

    @property
    def scales(self) -> list[Tensor]:
        """Of keys and of values; none where they rest as they are used."""
        return self.tensors[2:]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def parts(self, row: int, place: slice) -> list[Tensor]:
        """The rooms of some tokens of a layer, each [1, tokens, heads, channels] (or 1 in place of channels)."""
        return [tensor[row, :, place] for tensor in self.tensors]

    def keep(self, row: int, place: slice, k: Tensor, v: Tensor) -> None:
        """Put keys and values of a layer into their place."""
        put(self.parts(row, place), k, v)

    def give(self, row: int, place: slice, k: Tensor, v: Tensor) -> None:
        """Copy those of a layer into room for their use."""
        take(self.parts(row, place), k, v)


def put(rooms: Sequence[Tensor], k: Tensor, v: Tensor) -> None:
    """Write keys and values into the rooms of as many tokens."""
    for number, x in enumerate((k, v)):
        if len(rooms) == 2:
            rooms[number].copy_(x)
        else:
            keep_small(x, rooms[number], rooms[number + 2])


def take(rooms: Sequence[Tensor], k: Tensor, v: Tensor) -> None:
    """Copy keys and values from the rooms of as many tokens."""
    for number, x in enumerate((k, v)):
        if len(rooms) == 2:
            x.copy_(rooms[number])
        else:
            give_back(x, rooms[number], rooms[number + 2])


class RingCache(Kept):
    """Keys and values of one step, of `frames * n` tokens in ring order.

    `origin` is the first frame the stream ever writes: slots before it are empty. `rooms` may be given.
    """

    def __init__(self, shape: CacheShape, like: Tensor, origin: int = 0, rooms: Sequence[Tensor] | None = None) -> None:
        super().__init__(shape, rooms or shape.resting(shape.ring_tokens, like, shape.layers))
        self.origin = origin

    def place(self, frame: int, frames: int) -> slice:
        """Where in the ring the tokens of a block lie whose first latent frame is `frame`."""
        start = frame % self.shape.frames * self.shape.frame_tokens
        return slice(start, start + frames * self.shape.frame_tokens)

    def write(self, layer: int, frame: int, k: Tensor, v: Tensor) -> None:
        """Put a block's tokens into their place, over the oldest ones."""
        place = self.place(frame, k.shape[1] // self.shape.frame_tokens)
        self.keep(self.shape.row(layer), place, k, v)

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


class SinkCache(Kept):
    """Keys (before rotation) and values of the condition tokens, the same for every step: one copy."""

    def __init__(self, shape: CacheShape, like: Tensor) -> None:
        super().__init__(shape, shape.resting(shape.sink_tokens, like, shape.layers))

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

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def begin(self, views: "Sequence[StreamView]", layers: range) -> None:
        """A pass is about to start, in which each of these layers serves all these cells, in order."""

    def assemble(self, view: "StreamView", layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put a cell's rotated keys and its values into its ring; give all that the cell may attend to.

        Its own tokens are those that it brings, whatever a ring of a small kind makes of them.
        """
        ring, own = view.ring, view.ring.place(view.frame, view.frames)
        ring.write(layer, view.frame, k, v)
        row = ring.shape.row(layer)
        end = view.put_sink(layer, self.k, self.v)
        for span in view.spans():
            start, end = end, end + span.stop - span.start
            ring.give(row, span, self.k[:, start:end], self.v[:, start:end])
            if ring.scales and span.start <= own.start < span.stop:
                hole = slice(start + own.start - span.start, start + own.stop - span.start)
                self.k[:, hole] = k
                self.v[:, hole] = v
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
        return self.sink.nbytes + sum(ring.nbytes for ring in self.rings) + self.scratch.nbytes

    def held(self) -> dict[str, tuple[int, int]]:
        """Bytes by part, (on the device, in host memory); a sink that a block in flight still sees is counted."""
        sinks = sum(sink.nbytes for sink in self._sinks)
        rings = sum(ring.nbytes for ring in self.rings)
        return {"caches": (rings, 0), "sink": (sinks, 0), "scratch": (self.scratch.nbytes, 0)}


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
        self.sink.keep(self.sink.shape.row(layer), slice(None), k, v)
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
        if self.sink.scales:
            self.sink.give(row, slice(None), k[:, :end], v[:, :end])
            k[:, :end] = rotate(k[:, :end], self.sink_turns)
        else:
            k[:, :end] = rotate(self.sink.k[row], self.sink_turns)
            v[:, :end] = self.sink.v[row]
        return end
