"""FSDP2 as PyTorch brings it: full shard, and hybrid shard with the shards in host memory.

The baselines of this library. Every unit is wrapped by itself, so that what lies outside the transformer blocks does
not stay gathered through the whole forward; `wrap=reference` wraps the blocks alone, as the reference does, so that the
failure that people report can be reproduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from liveavatar.checkpoint.read import TensorSource, read_rows
from liveavatar.checkpoint.slab import allocate, retype
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.strategies.base import WholeLattice
from liveavatar.strategies.ranks import RankStrategy
from liveavatar.strategies.voting import UnitGathers, Voting

WRAPS = ("units", "reference")
UNSHARDS = ("unit", "whole")


class FsdpFull(WholeLattice, RankStrategy):
    """Full shard: every rank holds 1/N of each unit and gathers units one by one.

    reshard_after_forward: give a unit's gathered weights back after use; False keeps them after the first pass.
    wrap: `units`, or `reference` for the transformer blocks alone: all else then stays gathered as the root unit.
    unshard: `unit` by unit, or the `whole` model before the first pass.
    prefetch: units that are gathered ahead of the one that computes.
    Raises ValueError for values that cannot work.
    """

    name = "fsdp_full"
    cells_in_flight = (
        None  # FSDP2 gathers and lets go at each call of a unit: cells that share a pass would save nothing
    )
    offloads = False
    hoists = False  # a unit's weights are there inside its own forward only

    def __init__(
        self,
        reshard_after_forward: bool = True,
        wrap: str = "units",
        unshard: str = "unit",
        prefetch: int = 1,
        timeout_s: float = 120.0,
    ) -> None:
        super().__init__(timeout_s)
        if wrap not in WRAPS:
            raise ValueError(f"strategy.wrap={wrap!r} is unknown; choose one of {', '.join(WRAPS)}")
        if unshard not in UNSHARDS:
            raise ValueError(f"strategy.unshard={unshard!r} is unknown; choose one of {', '.join(UNSHARDS)}")
        if prefetch < 0:
            raise ValueError(f"strategy.prefetch={prefetch} cannot be negative; 0 leaves the order to FSDP2")
        self.reshard_after_forward, self.wrap, self.unshard, self.prefetch = (
            reshard_after_forward,
            wrap,
            unshard,
            prefetch,
        )

    @property
    def is_output_rank(self) -> bool:
        return self.is_global_zero

    def mesh(self) -> DeviceMesh:
        """All ranks on one axis: each holds 1/N."""
        return init_device_mesh(self.device.type, (self.world_size,), mesh_dim_names=("shard",))

    def policies(self) -> dict[str, Any]:
        """What `fully_shard` is told beside the mesh."""
        return {}

    @property
    def rest(self) -> torch.device:
        """Where shards rest: on the device, or in host memory (one and the same place on a CPU)."""
        return torch.device("cpu") if self.offloads else self.device

    def cut(self, dit: AvatarDiT, dtype: torch.dtype) -> Sequence[FSDPModule]:
        """Wrap the units of a DiT, which is still on meta; returns them in the order of a pass."""
        retype(dit, dtype)
        self._mesh = self.mesh()
        return shard(dit, self._mesh, self.wrap, self.reshard_after_forward, self.prefetch, **self.policies())

    def place(self, dit: AvatarDiT, source: TensorSource, dtype: torch.dtype) -> None:
        dit.hoist = 0
        wrapped = self.cut(dit, dtype)
        held = fill_shards(dit, source, self.rest)
        if self.offloads:
            self.traffic.parked = held
        else:
            self.traffic.held = held
        if self.unshard == "whole":
            for unit in (*wrapped, dit):
                assert isinstance(unit, FSDPModule)
                unit.set_reshard_after_forward(False)

    def take_requests(self, dit: AvatarDiT) -> None:
        super().take_requests(dit)
        if self._mesh["shard"].size() > 1:
            keep = self.unshard == "whole" or not self.reshard_after_forward
            gathers = UnitGathers(dit.units(), self.prefetch, keep)
            dit.residency = Voting(gathers, list(dit.units()), self.device, self._mesh.get_group("shard"))

    def linger(self, dit: AvatarDiT) -> None:
        if isinstance(dit.residency, Voting):
            dit.residency.linger(lambda: dit([]))

    def summary(self) -> str:
        shards = (self.traffic.held or self.traffic.parked) / 1e6
        where = "in host memory" if self.traffic.parked else "on each rank"
        return (
            f"{self.name} on {self.world_size} × {self.device.type}: {shards:.1f} MB of shards {where}, "
            f"wrap={self.wrap}, unshard={self.unshard}, conditioning not hoisted; {self.computing()}"
        )

    def release(self) -> None:
        pass


class HsdpOffload(FsdpFull):
    """Hybrid shard with offload: shards rest in host memory (pinned beside a GPU), replicas across groups of ranks.

    `shard_size` ranks hold one copy between them; null takes the ranks of a machine. Raises ValueError where it does
    not divide the ranks.
    """

    name = "hsdp_offload"
    offloads = True

    def __init__(
        self,
        shard_size: int | None = None,
        reshard_after_forward: bool = True,
        prefetch: int = 1,
        timeout_s: float = 120.0,
    ) -> None:
        super().__init__(reshard_after_forward, "units", "unit", prefetch, timeout_s)
        if shard_size is not None and shard_size < 1:
            raise ValueError(f"strategy.shard_size={shard_size} must be 1 or more, or null for the ranks of a machine")
        self.shard_size = shard_size

    def arrange(self, dit: AvatarDiT, steps: int, decode: str, ulysses_size: int = 1) -> None:
        super().arrange(dit, steps, decode, ulysses_size)
        if self.world_size % self._size:
            fitting = [n for n in range(1, self.world_size + 1) if self.world_size % n == 0]
            raise ValueError(
                f"strategy.shard_size={self._size} does not divide {self.world_size} ranks; choose one of {fitting}"
            )

    @property
    def _size(self) -> int:
        return self.num_processes if self.shard_size is None else self.shard_size

    def mesh(self) -> DeviceMesh:
        """Replicas × shards."""
        size = self._size
        names = ("replicate", "shard")
        return init_device_mesh(self.device.type, (self.world_size // size, size), mesh_dim_names=names)

    def policies(self) -> dict[str, Any]:
        return {"offload_policy": CPUOffloadPolicy(pin_memory=self.device.type == "cuda")}


def shard(
    dit: AvatarDiT, mesh: DeviceMesh, wrap: str, reshard_after_forward: bool, prefetch: int, **policies: Any
) -> Sequence[FSDPModule]:
    """Apply FSDP2 to the units of a DiT on meta; returns the wrapped units in the order of a pass."""
    units = {name: unit for name, unit in dit.units().items() if wrap == "units" or name.startswith("blocks.")}
    for unit in units.values():
        fully_shard(unit, mesh=mesh, reshard_after_forward=reshard_after_forward, **policies)
    fully_shard(dit, mesh=mesh, reshard_after_forward=False, **policies)
    ordered: list[FSDPModule] = [unit for unit in units.values() if isinstance(unit, FSDPModule)]
    if prefetch:
        for index, unit in enumerate(ordered):
            unit.set_modules_to_forward_prefetch(ordered[index + 1 : index + 1 + prefetch])
    return ordered


def fill_shards(dit: nn.Module, source: TensorSource, rest: torch.device) -> int:
    """Give every sharded parameter its local part, read tensor by tensor; returns the bytes held."""
    held = 0
    for path, owner in dit.named_modules():
        for name, parameter in list(owner._parameters.items()):
            if not isinstance(parameter, DTensor):
                continue
            start, stop = _own_rows(parameter)
            rows = read_rows(source, f"{path}.{name}" if path else name, parameter.shape, start, stop)
            local = rows.to(parameter.dtype)
            held += local.nbytes
            room = allocate(local.nbytes, rest, pinned=rest.type == "cpu" and torch.cuda.is_available())
            room = room.view(local.dtype).view(local.shape).copy_(local)
            whole = DTensor.from_local(
                room,
                parameter.device_mesh,
                parameter.placements,
                run_check=False,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
            owner._parameters[name] = nn.Parameter(whole, requires_grad=False)
    return held


def _own_rows(parameter: DTensor) -> tuple[int, int]:
    """The rows of a tensor that this rank holds: FSDP2 shards along the first dimension, as `torch.chunk` cuts."""
    mesh, rows = parameter.device_mesh, parameter.shape[0]
    size, rank = mesh["shard"].size(), mesh.get_local_rank("shard")
    each = -(-rows // size)
    return min(rank * each, rows), min((rank + 1) * each, rows)
