"""All weights on each of several ranks, which share cells by sequence or pictures by lines."""

from __future__ import annotations

import torch

from liveavatar.checkpoint.read import TensorSource
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.strategies.base import WholeLattice, place_resident
from liveavatar.strategies.ranks import RankStrategy


class Replicated(WholeLattice, RankStrategy):
    """Resident weights on every rank: nothing is gathered; parallel.ulysses_size says how many ranks share a cell."""

    name = "replicated"
    cells_in_flight = None

    def __init__(self, timeout_s: float = 120.0) -> None:
        super().__init__(timeout_s)

    @property
    def is_output_rank(self) -> bool:
        return self.is_global_zero

    def place(self, dit: AvatarDiT, source: TensorSource, dtype: torch.dtype) -> None:
        self.traffic.held = place_resident(dit, source, dtype, self.device)

    def summary(self) -> str:
        held = f"{self.traffic.held / 1e6:.1f} MB of DiT weights on each rank"
        return f"replicated on {self.world_size} × {self.device.type}: {held}; {self.computing()}"

    def release(self) -> None:
        pass
