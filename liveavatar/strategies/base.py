"""What every strategy offers beyond Fabric's contract: bringing units to life, and an account of what it moved."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from liveavatar.checkpoint.read import TensorSource
from liveavatar.checkpoint.slab import SlabLayout, allocate, point, vacate
from liveavatar.models.dit.cache import CacheShape, StreamCaches
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.sampling.relay import LocalRelay, Relay


@dataclass
class Traffic:
    """Bytes of weights that a strategy has moved, counted where the copy happens.

    host: copied from host memory to the device. received: taken from other ranks, weights or, in a pipeline, latents
    and hidden states; sent: given to them there. held: what stays on this rank's device for good (shards, resident
    units, ring slots). parked: what rests in this machine's host memory. caches_in, caches_out: keys and values brought
    from host memory and back.
    """

    host: int = 0
    received: int = 0
    sent: int = 0
    fetches: int = 0
    caches_in: int = 0
    caches_out: int = 0
    held: int = 0
    parked: int = 0


class Strategy(Protocol):
    """The part of a strategy that the rest of the library uses."""

    @property
    def device(self) -> torch.device: ...

    @property
    def is_output_rank(self) -> bool: ...

    @property
    def traffic(self) -> Traffic: ...

    @property
    def cells_in_flight(self) -> int | None: ...

    def arrange(self, dit: AvatarDiT, steps: int, decode: str) -> None: ...

    def place(self, dit: AvatarDiT, source: TensorSource, dtype: torch.dtype) -> None: ...

    def make_caches(self, shape: CacheShape, steps: range, like: Tensor, origin: int) -> StreamCaches: ...

    def relay(self, steps: int, cells_in_flight: int) -> Relay: ...

    def holdings(self) -> dict[str, tuple[int, int]]: ...

    def summary(self) -> str: ...

    def release(self) -> None: ...


class WholeLattice:
    """What strategies share whose ranks each compute every cell: they cut neither steps nor layers.

    Raises ValueError for a decode rank: there is none to spare.
    """

    name: str

    def arrange(self, dit: AvatarDiT, steps: int, decode: str) -> None:
        if decode != "inline":
            raise ValueError(
                f"parallel.decode={decode}, but strategy {self.name} decodes where it denoises: write "
                "parallel.decode=inline or choose +strategy=timestep_pipeline or +strategy=diagonal_pipeline"
            )

    def relay(self, steps: int, cells_in_flight: int) -> LocalRelay:
        return LocalRelay(steps, cells_in_flight)


def place_resident(
    dit: AvatarDiT, source: TensorSource, dtype: torch.dtype, device: torch.device, only: Set[str] | None = None
) -> int:
    """Put every unit's slab, or those of the units `only`, on the device for good; returns the bytes held.

    Slabs are filled on the host one unit at a time, so the host never holds more than one unit.
    """
    held = 0
    for name, unit in dit.units().items():
        if only is not None and name not in only:
            continue
        layout = SlabLayout.of(unit, dtype)
        slab = allocate(layout.nbytes, torch.device("cpu"))
        layout.fill(slab, source, name)
        if device.type != "cpu":
            slab = allocate(layout.nbytes, device).copy_(slab)
        vacate(unit, dtype, device)
        point(unit, layout.views(slab))
        held += layout.nbytes
    return held
