"""Where the caches of a measured stream are: full from the first cell on, or left out.

`reference` is the offload of the published program, written anew from what it does: all layers of a step go to the
device before that step and back to host memory after it, in blocking copies of memory that is not page-locked.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from liveavatar.benching.shapes import pour
from liveavatar.models.dit.cache import CacheShape, RingCache, Scratch, SinkCache, StreamCaches, StreamView
from liveavatar.strategies.base import Traffic

Maker = Callable[[CacheShape, range, Tensor, int], StreamCaches]


def filled(make: Maker, seed: int = 0) -> Maker:
    """Caches as after a long stream: every slot of each ring is valid, and holds seeded numbers."""
    run = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed + 77))

    def made(shape: CacheShape, steps: range, like: Tensor, origin: int) -> StreamCaches:
        caches = make(shape, steps, like, origin - shape.frames)
        near = run.to(like.dtype)
        rings = [caches.ring(step) for step in caches.steps]
        pairs = {
            step: ring.stored if isinstance(ring, AwayRing) else (ring.k, ring.v)
            for step, ring in zip(caches.steps, rings, strict=True)
        }
        pairs[-1] = (caches.sink.k, caches.sink.v)
        for step, pair in pairs.items():
            for which, tensor in enumerate(pair):
                source = near.to(tensor.device)
                for row in range(len(tensor)):
                    pour(tensor[row].view(-1), source, 7919 * (2 * (64 * step + shape.first_layer + row) + which))
        return caches

    return made


class Unseen(Scratch):
    """A cell sees its own tokens and nothing else."""

    def __init__(self, like: Tensor) -> None:
        self.k = self.v = like.new_empty(0)

    def assemble(self, view: StreamView, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return k, v


class NoCaches(StreamCaches):
    """The work without caches, for those that know none: there is neither ring nor sink."""

    def __init__(self, shape: CacheShape, steps: range, like: Tensor, origin: int) -> None:
        self.shape, self.steps = shape, steps
        self._sinks = weakref.WeakSet()
        nothing = replace(shape, layers=0)
        self.sink = SinkCache(nothing, like)
        self.rings, self.scratch = [RingCache(nothing, like, origin) for _ in steps], Unseen(like)


class AwayRing(RingCache):
    """A ring that rests in host memory (`stored`) and is on the device for the length of its step."""

    def __init__(self, shape: CacheShape, like: Tensor, origin: int) -> None:
        super().__init__(shape, torch.empty(0, dtype=like.dtype), origin)
        self.stored = tuple(self.tensors)


class WholeMoves(Scratch):
    """Brings all layers of a step's ring to the device when a pass begins, and the ring before it back."""

    def __init__(self, shape: CacheShape, like: Tensor, traffic: Traffic) -> None:
        super().__init__(shape, like)
        self.near = [shape.zeros(shape.ring_tokens, like, shape.layers) for _ in range(2)]
        self.traffic = traffic
        self.here: AwayRing | None = None

    @property
    def tensors(self) -> list[Tensor]:
        return [self.k, self.v, *self.near]

    def begin(self, views: Sequence[StreamView], layers: range) -> None:
        rings = [view.ring for view in views]
        if len(rings) != 1 or not isinstance(rings[0], AwayRing):
            raise RuntimeError("the reference's offload moves the caches of one step at a time: one cell a pass")
        if self.here is not None:
            for stored, near in zip(self.here.stored, self.near, strict=True):
                stored.copy_(near)
                self.traffic.caches_out += near.nbytes
        self.here = rings[0]
        for stored, near in zip(self.here.stored, self.near, strict=True):
            near.copy_(stored)
            self.traffic.caches_in += near.nbytes
        self.here.tensors = list(self.near)


class ReferenceCaches(StreamCaches):
    """The published program's offload of caches."""

    def __init__(self, shape: CacheShape, steps: range, like: Tensor, origin: int, traffic: Traffic) -> None:
        self.traffic = traffic
        super().__init__(shape, steps, like, origin)

    def _rooms(self, like: Tensor, origin: int) -> tuple[list[RingCache], Scratch]:
        self.traffic.parked += (
            len(self.steps)
            * 2
            * self.shape.zeros(0, like).element_size()
            * (self.shape.layers * self.shape.ring_tokens * self.shape.heads * self.shape.channels)
        )
        return [AwayRing(self.shape, like, origin) for _ in self.steps], WholeMoves(self.shape, like, self.traffic)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.sink.k, self.sink.v, *self.scratch.tensors))
