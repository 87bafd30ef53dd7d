"""Data parallel: every rank holds the whole model and computes requests of its own."""

from __future__ import annotations

import torch

from liveavatar.checkpoint.read import TensorSource
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.strategies.base import WholeLattice, place_resident
from liveavatar.strategies.ranks import RankStrategy


class DataParallel(WholeLattice, RankStrategy):
    """All weights resident on every rank; nothing moves, and no rank waits for another before the end.

    For lists of requests (`requests=list.jsonl`) on cards that hold the model. Raises ValueError when `timeout_s`, how
    long ranks wait for one another at the start and the end, is not positive.
    """

    name = "data_parallel"
    cells_in_flight = None
    computes = ("requests",)

    def __init__(self, timeout_s: float = 120.0) -> None:
        super().__init__(timeout_s)

    @property
    def is_output_rank(self) -> bool:
        return self.is_global_zero

    def place(self, dit: AvatarDiT, source: TensorSource, dtype: torch.dtype) -> None:
        self.traffic.held = place_resident(dit, source, dtype, self.device)

    def summary(self) -> str:
        return (
            f"data_parallel on {self.world_size} × {self.device.type}: {self.traffic.held / 1e6:.1f} MB of DiT weights "
            f"on each rank; {self.division}"
        )

    def release(self) -> None:
        pass
