"""What strategies share that may stream weights: the units of a rank's stage pass through a ring of slots."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from liveavatar.checkpoint.read import TensorSource
from liveavatar.checkpoint.slab import SlabLayout, vacate
from liveavatar.models.dit.cache import CacheShape, StreamCaches
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.strategies.base import place_resident
from liveavatar.strategies.filed import FileSlabs, filed
from liveavatar.strategies.kv import HostCaches, HostRooms
from liveavatar.strategies.mates import Mates
from liveavatar.strategies.ranks import RankStrategy
from liveavatar.strategies.ring import SlabRing
from liveavatar.strategies.sources import HostSlabs, PeerShards


class StreamingStrategy(RankStrategy):
    """Ranks that can bring in each unit of their stage just before it computes.

    sources: what `strategy.source` may say.
    Raises ValueError for values that cannot work.
    """

    sources: tuple[str, ...]

    def __init__(
        self,
        slots: int,
        source: str,
        resident: int | str,
        caches: str,
        cells_in_flight: int | None,
        spill_dir: str | None,
        debug: bool,
        timeout_s: float,
    ) -> None:
        if slots < 2:
            raise ValueError(
                f"strategy.slots={slots}: one slot computes while another is filled, so at least strategy.slots=2"
            )
        if source not in self.sources:
            raise ValueError(f"strategy.source={source!r} is unknown; choose one of {', '.join(self.sources)}")
        if isinstance(resident, str):
            raise ValueError(
                f"strategy.resident={resident!r}: a strategy takes a number of transformer blocks; `auto` is settled "
                "from the memory of the device when a run is assembled"
            )
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
        self._bytes: PeerShards | HostSlabs | FileSlabs | None = None
        self._mates: Mates | None = None
        self._rooms = HostRooms(self.traffic)
        self._cold = 0

    @property
    def is_output_rank(self) -> bool:
        return self.is_global_zero

    def make_caches(self, shape: CacheShape, steps: range, like: Tensor, origin: int) -> StreamCaches:
        if self.caches == "host":
            return HostCaches(shape, steps, like, origin, self.traffic, self._rooms)
        return super().make_caches(shape, steps, like, origin)

    def stream_in(self, dit: AvatarDiT, source: TensorSource, dtype: torch.dtype, where: str, mates: Mates) -> None:
        """Bring the units of the model's stage to rest at `where`, shared with `mates`, and make the ring for them."""
        self._mates = mates
        settled = set(self.settled(dit.stage))
        self.traffic.held += place_resident(dit, source, dtype, self.device, settled)
        parts = {name: part for name, part in dit.parts().items() if name not in settled}
        if not parts:
            return
        shards = mates.size if where == "peers" else 1
        layouts = {name: SlabLayout.of(unit, dtype, shards, names) for name, (unit, names) in parts.items()}
        if where == "peers":
            self._bytes = PeerShards(layouts, source, self.device, self.traffic, mates)
        elif where == "disk" and (files := filed(source, layouts)) is not None:
            self._bytes = FileSlabs(layouts, files, self.device, self.traffic, self.slots)
        else:
            folder = self.spill_dir if where == "disk" else None
            self._bytes = HostSlabs(layouts, source, self.device, self.traffic, mates, folder)
        for unit, names in parts.values():
            vacate(unit, dtype, self.device, names)
        units = {name: part.unit for name, part in parts.items()}
        self.ring = SlabRing(units, layouts, self._bytes, self.slots, self.device, self.debug)
        self.traffic.held += self.ring.nbytes
        dit.residency = self.ring
        self._cold = sum(layout.nbytes for name, layout in layouts.items() if "/" in name)

    def settled(self, layers: range) -> list[str]:
        """The blocks that stay on the device, evenly spread over a stage: all of them, where it has no more."""
        count, kept = len(layers), min(self.resident, len(layers))
        return [f"blocks.{layers[(2 * i + 1) * count // (2 * kept)]}" for i in range(kept)]

    def holdings(self) -> dict[str, tuple[int, int]]:
        """Shards and resident blocks apart from the ring; slabs that ranks of a machine share count on each of them."""
        ring = self.ring.nbytes if self.ring else 0
        slabs = self._bytes.room.nbytes if isinstance(self._bytes, HostSlabs) else 0
        return {"weights": (self.traffic.held - ring, slabs), "ring": (ring, 0)}

    def machine_of(self, rank: int) -> int:
        """The number of the machine on which a rank runs."""
        return rank // self.num_processes

    def held_words(self, where: str) -> str:
        """What this rank holds, for the log."""
        ring = self.ring.nbytes if self.ring else 0
        resting = f"{self.traffic.parked / 1e6:.1f} MB {'mapped from disk' if where == 'disk' else 'in host memory'}"
        if isinstance(self._bytes, FileSlabs):
            resting = "all else in the files of weights.dir"
        cold = (
            f", {self._cold / 1e6:.1f} MB of the weights prepare conditioning, outside the hot loop"
            if self._cold
            else ""
        )
        return (
            f"{(self.traffic.held - ring) / 1e6:.1f} MB at rest and {ring / 1e6:.1f} MB of ring ({self.slots} slots) "
            f"on each rank, {resting}{cold}"
        )

    def release(self) -> None:
        """Wait for the transfers under way, and give the memory back."""
        if self.ring is not None:
            self.ring.close()
            self.ring = None
        if self._bytes is not None:
            self._bytes.close()
            self._bytes = None
        if self._mates is not None:
            self._mates.close()
            self._mates = None
