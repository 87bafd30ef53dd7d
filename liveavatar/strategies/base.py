"""What every strategy offers beyond Fabric's contract: bringing units to life, and an account of what it moved."""

from __future__ import annotations

from collections.abc import Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor

from liveavatar.checkpoint.read import TensorSource
from liveavatar.checkpoint.slab import SlabLayout, allocate, point, vacate
from liveavatar.models.dit.cache import CacheShape, StreamCaches
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.models.vae.codec import WanCodec
from liveavatar.sampling.relay import LocalRelay, Relay
from liveavatar.strategies.exchange import Exchange, check_degree
from liveavatar.strategies.rows import SplitCodec
from liveavatar.strategies.ulysses import Ulysses


@dataclass
class Traffic:
    """Bytes of weights that a strategy has moved, counted where the copy happens.

    host: copied from host memory to the device. received: taken from other ranks, weights or, where ranks share the
    work, latents, hidden states, keys and values, lines of the picture; gathered: the weights among it; sent: given to
    them there, weights apart. held: what stays on this rank's device for good (shards, resident units, ring slots).
    parked: what it has in this machine's host memory, alone or shared with ranks that use the same. caches_in,
    caches_out: keys and values brought from host memory and back.
    """

    host: int = 0
    received: int = 0
    gathered: int = 0
    sent: int = 0
    fetches: int = 0
    caches_in: int = 0
    caches_out: int = 0
    held: int = 0
    parked: int = 0


class Strategy(Protocol):
    """The part of a strategy that the rest of the library uses.

    `computes` says what its ranks may compute, the best first: `same`, one request together, or `requests`, each one of
    its own; `gathers`, whether they then need one another for every unit. `collect` waits for all ranks and tells each
    what all say; `watched` names a rank that is lost.
    """

    @property
    def device(self) -> torch.device: ...

    @property
    def is_output_rank(self) -> bool: ...

    @property
    def traffic(self) -> Traffic: ...

    @property
    def cells_in_flight(self) -> int | None: ...

    @property
    def hoists(self) -> bool: ...

    def arrange(self, dit: AvatarDiT, steps: int, decode: str, ulysses_size: int = 1) -> None: ...

    def place(self, dit: AvatarDiT, source: TensorSource, dtype: torch.dtype) -> None: ...

    def make_caches(self, shape: CacheShape, steps: range, like: Tensor, origin: int) -> StreamCaches: ...

    def relay(self, steps: int, cells_in_flight: int) -> Relay: ...

    def split_codec(self, codec: WanCodec) -> SplitCodec | None: ...

    def holdings(self) -> dict[str, tuple[int, int]]: ...

    def summary(self) -> str: ...

    @property
    def gathers(self) -> bool: ...

    @property
    def computes(self) -> tuple[str, ...]: ...

    def take_requests(self, dit: AvatarDiT) -> None: ...

    def linger(self, dit: AvatarDiT) -> None: ...

    def collect(self, value: Any) -> list[Any]: ...

    def watched(self) -> AbstractContextManager[object]: ...

    def release(self) -> None: ...


class WholeLattice:
    """What strategies share whose ranks each compute every cell: they cut neither steps nor layers.

    What they compute is the same request, or each one of its own. With parallel.ulysses_size above 1, that many
    consecutive ranks share each cell by sequence, and groups of them compute the same; with parallel.decode=split, all
    ranks share each picture.
    Raises ValueError for a degree that cannot work, and for a decode rank: there is none to spare.
    """

    name: str
    computes: tuple[str, ...] = ("requests", "same")
    divides: str
    world_size: int
    max_devices: int
    traffic: Traffic
    _timeout: timedelta | None
    hoists = True
    gathers = False
    ulysses_size = 1
    _lines: Exchange | None = None

    def arrange(self, dit: AvatarDiT, steps: int, decode: str, ulysses_size: int = 1) -> None:
        if decode not in ("inline", "split"):
            raise ValueError(
                f"parallel.decode={decode}, but strategy {self.name} decodes where it denoises: write "
                "parallel.decode=inline or =split, or choose +strategy=timestep_pipeline or +strategy=diagonal_pipeline"
            )
        if self.max_devices == 1 and (decode == "split" or ulysses_size != 1):
            asked = "parallel.decode=split" if decode == "split" else f"parallel.ulysses_size={ulysses_size}"
            raise ValueError(
                f"{asked} divides work among ranks, and strategy {self.name} has one: add +strategy=replicated "
                "(all weights on each rank) or +strategy=fsdp_stream, with fabric.devices above 1"
            )
        check_degree(ulysses_size, dit.num_heads, self.world_size, self.max_devices)
        self.ulysses_size = ulysses_size
        if ulysses_size > 1:
            dit.spread = Ulysses(Exchange.among(ulysses_size, self.world_size, self.traffic, self._timeout))
        if decode == "split" and self.world_size > 1:
            self._lines = Exchange.among(self.world_size, self.world_size, self.traffic, self._timeout)

    def relay(self, steps: int, cells_in_flight: int) -> LocalRelay:
        return LocalRelay(steps, cells_in_flight)

    def split_codec(self, codec: WanCodec) -> SplitCodec | None:
        """The codec of which each rank decodes a part; None where one rank decodes the whole."""
        return None if self._lines is None else SplitCodec(codec, self._lines)

    def computing(self) -> str:
        """What the ranks compute, for the log."""
        words = "every rank computes the same request"
        if self.divides == "requests":
            words = "each rank computes requests of its own"
        if self.ulysses_size > 1:
            words = f"ranks compute by sequence, {self.ulysses_size} to a cell"
            groups = self.world_size // self.ulysses_size
            words += f", in {groups} groups that compute the same" if groups > 1 else ""
        return f"{words}, and share the decoding of each picture" if self._lines is not None else words


def place_resident(
    dit: AvatarDiT, source: TensorSource, dtype: torch.dtype, device: torch.device, only: Set[str] | None = None
) -> int:
    """Put every unit's slab, or those of the units and parts `only`, on the device for good; returns the bytes held.

    Slabs are filled on the host one unit at a time, so the host never holds more than one unit.
    """
    held = 0
    found = {name: (unit, None) for name, unit in dit.units().items()} if only is None else dit.parts()
    for name, (unit, names) in found.items():
        if only is not None and name not in only:
            continue
        layout = SlabLayout.of(unit, dtype, names=names)
        slab = allocate(layout.nbytes, torch.device("cpu"))
        layout.fill(slab, source, name)
        if device.type != "cpu":
            slab = allocate(layout.nbytes, device).copy_(slab)
        vacate(unit, dtype, device, names)
        point(unit, layout.views(slab))
        held += layout.nbytes
    return held
