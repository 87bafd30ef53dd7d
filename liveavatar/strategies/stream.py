"""Streaming unshard: each unit is brought in just before it computes and let go right after.

The bound on top of the shards is `slots` units, whatever the world size: no copies in or out, no root unit that stays
gathered. What the ranks of a shard group compute is the same request on every rank; the output rank shows it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liveavatar.checkpoint.read import TensorSource
from liveavatar.checkpoint.slab import SlabLayout, vacate
from liveavatar.models.dit.cache import CacheShape, StreamCaches
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.strategies.base import WholeLattice, place_resident
from liveavatar.strategies.kv import HostCaches
from liveavatar.strategies.ranks import RankStrategy
from liveavatar.strategies.ring import SlabRing
from liveavatar.strategies.sources import HostSlabs, PeerShards

SOURCES = ("auto", "peers", "host", "disk")


class FsdpStream(WholeLattice, RankStrategy):
    """Weights streamed through a ring of `slots`, from where they rest.

    source: `peers`, shards on the ranks; `host`, one copy in each machine's memory; `disk`, one mapped file in
        `spill_dir` (null: the system's folder for temporary files); `auto`, peers above one rank and host at one.
    resident: transformer blocks that stay on the device for good, spread evenly: an even spread lets copies and
        computation overlap where a prefix would not.
    caches: `device`, or `host`: the rings of all steps rest in host memory and pass through two rooms on the device.
    cells_in_flight: independent cells that share each arrival of a unit; None leaves it to the schedule.
    debug: check that no slot is refilled while it is lent, and fill freed slots with NaNs.
    timeout_s: how long a rank waits for another.
    Raises ValueError for values that cannot work.
    """

    name = "fsdp_stream"

    def __init__(
        self,
        slots: int = 2,
        source: str = "auto",
        resident: int = 0,
        caches: str = "device",
        cells_in_flight: int | None = None,
        spill_dir: str | None = None,
        debug: bool = False,
        timeout_s: float = 120.0,
    ) -> None:
        if slots < 2:
            raise ValueError(
                f"strategy.slots={slots}: one slot computes while another is filled, so at least strategy.slots=2"
            )
        if source not in SOURCES:
            raise ValueError(f"strategy.source={source!r} is unknown; choose one of {', '.join(SOURCES)}")
        if resident < 0:
            raise ValueError(f"strategy.resident={resident} cannot be negative: it counts transformer blocks")
        if caches not in ("device", "host"):
            raise ValueError(f"strategy.caches={caches!r} is unknown; write device or host")
        if spill_dir is not None and not Path(spill_dir).is_dir():
            raise ValueError(f"strategy.spill_dir={spill_dir} is no folder: name one on a fast disk")
        super().__init__(timeout_s)
        self.resident, self.caches, self.debug = resident, caches, debug
        self.spill_dir = Path(spill_dir or tempfile.gettempdir())
        self.slots, self.source, self.cells_in_flight = slots, source, cells_in_flight
        self.ring: SlabRing | None = None
        self._bytes: PeerShards | HostSlabs | None = None

    @property
    def is_output_rank(self) -> bool:
        return self.is_global_zero

    def arrange(self, dit: AvatarDiT, steps: int, decode: str) -> None:
        super().arrange(dit, steps, decode)
        self._settled(dit.num_layers)  # refuses more resident blocks than there are

    def make_caches(self, shape: CacheShape, steps: range, like: Tensor, origin: int) -> StreamCaches:
        if self.caches == "host":
            return HostCaches(shape, steps, like, origin, self.traffic)
        return super().make_caches(shape, steps, like, origin)

    def place(self, dit: AvatarDiT, source: TensorSource, dtype: torch.dtype) -> None:
        chosen = self.source
        if chosen == "auto":
            chosen = "peers" if self.world_size > 1 else "host"
        settled = set(self._settled(dit.num_layers))
        self.traffic.held += place_resident(dit, source, dtype, self.device, settled)
        units = {name: unit for name, unit in dit.units().items() if name not in settled}
        parts = self.world_size if chosen == "peers" else 1
        layouts = {name: SlabLayout.of(unit, dtype, parts) for name, unit in units.items()}
        if chosen == "peers":
            self._bytes = PeerShards(layouts, source, self.device, self.traffic)
        else:
            local = (self.local_rank, self.num_processes)
            folder = self.spill_dir if chosen == "disk" else None
            self._bytes = HostSlabs(
                layouts, source, self.device, self.traffic, local, self._tell_machine, self.barrier, folder
            )
        for unit in units.values():
            vacate(unit, dtype, self.device)
        self.ring = SlabRing(units, layouts, self._bytes, self.slots, self.device, self.debug)
        self.traffic.held += self.ring.nbytes
        dit.residency = self.ring
        self._chosen = chosen

    def _settled(self, layers: int) -> list[str]:
        """The blocks that stay on the device, evenly spread over the model."""
        if self.resident > layers:
            raise ValueError(
                f"strategy.resident={self.resident}, but the model has {layers} transformer blocks: choose fewer, "
                "or leave the strategy out to keep everything resident"
            )
        return [f"blocks.{(2 * i + 1) * layers // (2 * self.resident)}" for i in range(self.resident)]

    def _tell_machine(self, word: str) -> str:
        """What the first rank of this machine says, on each of its ranks."""
        words: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(words, word)
        return words[self.global_rank - self.local_rank]

    def holdings(self) -> dict[str, tuple[int, int]]:
        """Shards and resident blocks apart from the ring; slabs that ranks of a machine share count on each of them."""
        ring = self.ring.nbytes if self.ring else 0
        slabs = self._bytes.room.nbytes if isinstance(self._bytes, HostSlabs) else 0
        return {"weights": (self.traffic.held - ring, slabs), "ring": (ring, 0)}

    def summary(self) -> str:
        ring = self.ring.nbytes if self.ring else 0
        where = "mapped from disk" if self._chosen == "disk" else "in host memory"
        return (
            f"fsdp_stream on {self.world_size} × {self.device.type}, weights from {self._chosen}: "
            f"{(self.traffic.held - ring) / 1e6:.1f} MB at rest and {ring / 1e6:.1f} MB of ring ({self.slots} slots) "
            f"on each rank, {self.traffic.parked / 1e6:.1f} MB {where}; every rank computes the same request"
        )

    def release(self) -> None:
        """Wait for the transfers under way, and give the memory back."""
        if self.ring is not None:
            self.ring.close()
            self.ring = None
        if self._bytes is not None:
            self._bytes.close()
            self._bytes = None
