"""Pipelines: ranks own steps or layers of the lattice, with the caches for them, and hand cells on to one another.

Between layers a hidden state travels, between steps the latents; see `sampling.stages` for who does what and when.
Weights rest on the device, or stream through a ring where a stage does not fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from liveavatar.checkpoint.read import TensorSource
from liveavatar.checkpoint.slab import retype
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.models.vae.codec import WanCodec
from liveavatar.sampling.stages import Stage, StageTable, grid_table
from liveavatar.strategies.base import place_resident
from liveavatar.strategies.cuts import costs_of, layer_costs, written_table
from liveavatar.strategies.lockstep import LockStep
from liveavatar.strategies.mates import Mates
from liveavatar.strategies.relay import RankRelay
from liveavatar.strategies.streaming import StreamingStrategy

__all__ = ["DiagonalPipeline", "TimestepPipeline", "layer_costs"]


def refuse_shares(name: str, decode: str, ulysses_size: int) -> None:
    """Raises ValueError where ranks were to share cells or pictures, for here each has a stage to itself."""
    instead = "or choose +strategy=replicated, fsdp_stream, fsdp_full or hsdp_offload"
    if ulysses_size != 1:
        raise ValueError(
            f"parallel.ulysses_size={ulysses_size}: ranks of strategy {name} divide steps or layers and share no cell "
            f"by sequence: write parallel.ulysses_size=1, {instead}"
        )
    if decode == "split":
        raise ValueError(
            f"parallel.decode=split needs the latents on every rank, and in strategy {name} only the last stage "
            f"finishes them: write parallel.decode=rank or =inline, {instead}"
        )


class Pipeline(StreamingStrategy):
    """What both pipelines are: a stage table, the weights of the own stage, a relay between ranks.

    Rank 0 finishes the blocks or, with parallel.decode=rank, only decodes them, and writes the video.

    source: `device`, weights rest on it; `host`, in this machine's memory, one copy of what its ranks compute; `disk`,
        in a mapped file in `spill_dir`; `peers`, in shards on the ranks that compute the same layers, which then go
        in lock-step: a rank without a cell in a tick goes on gathering.
    slots, resident, caches, spill_dir, debug: as in fsdp_stream, for the units of a stage.
    cells_in_flight: independent cells that a rank takes in one pass, so that one arrival of a unit serves them all.
    table: a row for each rank, rank 0 first, in place of the cut by itself: `steps 0-1 layers 0-19`, or `decode`.
    costs: of each layer, as a list or a JSON file of measured seconds; None: by parameters.
    decode_cost: what decoding a block adds to the rank that finishes it, in layers; None: that of the file, or nothing.
    timeout_s: how long a rank waits for another.
    Raises ValueError for values that cannot work.
    """

    name: str
    sources = ("device", "host", "disk", "peers")
    computes = ("same",)
    gathers = False

    def __init__(
        self,
        source: str = "device",
        slots: int = 2,
        resident: int = 0,
        caches: str = "device",
        cells_in_flight: int | None = None,
        spill_dir: str | None = None,
        debug: bool = False,
        table: Sequence[Any] | None = None,
        costs: Any = None,
        decode_cost: float | None = None,
        timeout_s: float = 120.0,
    ) -> None:
        super().__init__(slots, source, resident, caches, cells_in_flight, spill_dir, debug, timeout_s)
        self.written, self.costs, self.decode_cost = table, costs, decode_cost
        self.table: StageTable | None = None

    @property
    def hoists(self) -> bool:
        """Not in lock-step: every rank brings in the same units in each tick, and prepares at other ticks."""
        return self.source != "peers"

    def role(self, rank: int) -> str:
        return "" if self.table is None else str(self.table.stages[rank])

    def step_groups_of(self, workers: int, steps: int) -> int:
        """How many ranges the steps are cut into."""
        raise NotImplementedError

    def arrange(self, dit: AvatarDiT, steps: int, decode: str, ulysses_size: int = 1) -> None:
        """Divide the work before any weight is read. Raises ValueError for a division that cannot work."""
        refuse_shares(self.name, decode, ulysses_size)
        if decode not in ("inline", "rank"):
            raise ValueError(f"parallel.decode={decode!r} is unknown; write inline or rank")
        try:
            self.table = self._cut(dit, steps, decode == "rank")
            self._check(self.table)
        except ValueError as error:
            raise ValueError(f"strategy {self.name} on fabric.devices={self.world_size}: {error}") from error
        dit.stage = self.table.stages[self.global_rank].layers

    def _cut(self, dit: AvatarDiT, steps: int, decode_rank: bool) -> StageTable:
        costs, decode_cost = costs_of(dit, self.costs, self.decode_cost)
        if self.written is not None:
            return written_table(self.written, self.world_size, steps, dit.num_layers, decode_rank)
        groups = self.step_groups_of(self.world_size - decode_rank, steps)
        return grid_table(self.world_size, steps, costs, decode_rank, groups, decode_cost)

    def _check(self, table: StageTable) -> None:
        layers = [len(stage.layers) for stage in table.stages if stage.computes]
        if self.resident > max(layers):
            raise ValueError(f"strategy.resident={self.resident}, but no rank has more than {max(layers)} blocks")
        shared = Counter(stage.layers for stage in table.stages if stage.computes)
        if self.source == "peers" and len(layers) > 1 and max(shared.values()) == 1:
            raise ValueError(
                "strategy.source=peers shards layers over the ranks that compute them, and here no two ranks compute "
                "the same ones: write strategy.source=host, or choose +strategy=timestep_pipeline"
            )

    def place(self, dit: AvatarDiT, source: TensorSource, dtype: torch.dtype) -> None:
        assert self.table is not None
        retype(dit, dtype)  # all is on meta: it costs nothing, and a stage without weights knows its type too
        where = self.source
        keys = [self._key(rank, stage) for rank, stage in enumerate(self.table.stages)]
        mates = Mates.by(keys, self.global_rank, self.timeout)
        if where == "peers" and mates.size == 1:
            where = "device"  # nobody to share with
        self.where = where
        if where == "device" or not dit.stage:
            self.traffic.held = place_resident(dit, source, dtype, self.device)
            return
        self.stream_in(dit, source, dtype, where, mates)
        if where == "peers" and self.ring is not None:
            dit.residency = LockStep(self.ring, list(dit.units()))

    def _key(self, rank: int, stage: Stage) -> tuple[Any, ...]:
        """Ranks with the same key have the same units to bring in, and share them."""
        if not stage.computes or self.source == "device":
            return ("alone", rank)
        return (stage.layers, 0 if self.source == "peers" else self.machine_of(rank))

    def split_codec(self, codec: WanCodec) -> None:
        """One rank decodes."""

    def relay(self, steps: int, cells_in_flight: int) -> RankRelay:
        assert self.table is not None
        return RankRelay(self.table, self.global_rank, self.traffic, cells_in_flight, self.source == "peers")

    def summary(self) -> str:
        assert self.table is not None
        cuts = ", ".join(f"rank {rank}: {stage}" for rank, stage in enumerate(self.table.stages))
        said = f"{self.name} on {self.world_size} × {self.device.type}: {cuts}; "
        if self.ring is None:
            said += f"{self.traffic.held / 1e6:.1f} MB of DiT weights on this rank"
        else:
            said += f"weights from {self.where}: {self.held_words(self.where)}"
        return said + ("; ranks compute by step, in lock-step" if self.source == "peers" else "")


class TimestepPipeline(Pipeline):
    """Each rank takes steps, with all layers: the reference's pipeline, freed from its number of GPUs."""

    name = "timestep_pipeline"

    def step_groups_of(self, workers: int, steps: int) -> int:
        return max(1, min(workers, steps))


class DiagonalPipeline(Pipeline):
    """Each rank takes layers, with the caches of all steps: weights and caches are divided by the ranks.

    step_groups: above 1, ranks form that many groups, each with a range of steps, and cut the layers within a group.
    """

    name = "diagonal_pipeline"

    def __init__(
        self,
        step_groups: int = 1,
        source: str = "device",
        slots: int = 2,
        resident: int = 0,
        caches: str = "device",
        cells_in_flight: int | None = None,
        spill_dir: str | None = None,
        debug: bool = False,
        table: Sequence[Any] | None = None,
        costs: Any = None,
        decode_cost: float | None = None,
        timeout_s: float = 120.0,
    ) -> None:
        super().__init__(
            source, slots, resident, caches, cells_in_flight, spill_dir, debug, table, costs, decode_cost, timeout_s
        )
        if step_groups != 1 and table is not None:
            raise ValueError(
                f"strategy.step_groups={step_groups} and strategy.table both cut the work: write one of them"
            )
        self.step_groups = step_groups

    def step_groups_of(self, workers: int, steps: int) -> int:
        return self.step_groups
