"""Pipelines: ranks own steps or layers of the lattice, with the caches for them, and hand cells on to one another.

Weights never move. Between layers a hidden state travels, between steps the latents; see `sampling.stages` for who does
what and when.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from liveavatar.checkpoint.read import TensorSource
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.sampling.stages import StageTable, layer_table, step_table
from liveavatar.strategies.base import place_resident
from liveavatar.strategies.ranks import RankStrategy
from liveavatar.strategies.relay import RankRelay


def layer_costs(dit: AvatarDiT) -> list[float]:
    """Parameters that each layer brings along: its block, its injector, and what stands before and after the blocks."""
    whole, costs = dit.units(), [0.0] * dit.num_layers
    layer = 0
    for name, unit in whole.items():
        if name.startswith("blocks."):
            layer = int(name.split(".")[1])
        costs[layer] += sum(parameter.numel() for parameter in unit.parameters())
    return costs


class Pipeline(RankStrategy):
    """What both pipelines are: a stage table, resident weights of the own stage, a relay between ranks.

    Rank 0 finishes the blocks or, with parallel.decode=rank, only decodes them, and writes the video.
    """

    name: str
    cells_in_flight = None
    computes = ("same",)
    table_of: Callable[..., StageTable]

    def __init__(self, timeout_s: float = 120.0) -> None:
        super().__init__(timeout_s)
        self.table: StageTable | None = None

    @property
    def is_output_rank(self) -> bool:
        return self.is_global_zero

    def role(self, rank: int) -> str:
        return "" if self.table is None else str(self.table.stages[rank])

    def arrange(self, dit: AvatarDiT, steps: int, decode: str) -> None:
        """Divide the work before any weight is read. Raises ValueError for a division that cannot work."""
        if decode not in ("inline", "rank"):
            raise ValueError(f"parallel.decode={decode!r} is unknown; write inline or rank")
        try:
            self.table = type(self).table_of(self.world_size, steps, layer_costs(dit), decode == "rank")
        except ValueError as error:
            raise ValueError(f"strategy {self.name} on fabric.devices={self.world_size}: {error}") from error
        dit.stage = self.table.stages[self.global_rank].layers

    def place(self, dit: AvatarDiT, source: TensorSource, dtype: torch.dtype) -> None:
        dit.to(dtype)  # all is on meta: it costs nothing, and a stage without weights knows its type too
        self.traffic.held = place_resident(dit, source, dtype, self.device)

    def relay(self, steps: int, cells_in_flight: int) -> RankRelay:
        assert self.table is not None
        return RankRelay(self.table, self.global_rank, self.traffic)

    def summary(self) -> str:
        assert self.table is not None
        cuts = [f"rank {rank}: {stage}" for rank, stage in enumerate(self.table.stages)]
        held = f"{self.traffic.held / 1e6:.1f} MB of DiT weights on this rank"
        return f"{self.name} on {self.world_size} × {self.device.type}: {', '.join(cuts)}; {held}"

    def release(self) -> None:
        pass


class TimestepPipeline(Pipeline):
    """Each rank takes steps, with all layers: the reference's pipeline, freed from its number of GPUs."""

    name = "timestep_pipeline"
    table_of = staticmethod(step_table)


class DiagonalPipeline(Pipeline):
    """Each rank takes layers, with the caches of all steps: weights and caches are divided by the ranks."""

    name = "diagonal_pipeline"
    table_of = staticmethod(layer_table)
