"""Ways to run the same stream: our strategies, FSDP2 as PyTorch brings it, and peers, each behind one face.

A way brings the weights of a DiT on meta to life, makes caches, and gives an account of what it moved. Peers run as
shipped; what had to be told them is said where they are made (`peers`).
It is long because a way has six duties and there are five sorts of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol
from unittest import mock

import torch
from lightning.fabric import Fabric
from torch import Tensor

from liveavatar.benching.caches import Maker, NoCaches, ReferenceCaches, filled
from liveavatar.benching.stage import StageAlone
from liveavatar.benching.watch import Watch
from liveavatar.checkpoint.quantised import quantised
from liveavatar.checkpoint.read import TensorSource
from liveavatar.checkpoint.slab import allocate, retype
from liveavatar.models.dit.cache import CacheShape, StreamCaches
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.models.dit.quantised import quantise_linears
from liveavatar.sampling.relay import LocalRelay, Relay
from liveavatar.sampling.stages import layer_table
from liveavatar.strategies import sources
from liveavatar.strategies.base import Traffic, place_resident
from liveavatar.strategies.fsdp import FsdpFull, HsdpOffload
from liveavatar.strategies.kv import HostCaches
from liveavatar.strategies.pipeline import layer_costs
from liveavatar.strategies.single import SingleDevice
from liveavatar.strategies.stream import FsdpStream


@dataclass(frozen=True)
class Setting:
    """What a row asks of a way beside its name. `kv`: device, host (our ring), reference, or none."""

    device: torch.device
    dtype: torch.dtype
    steps: int = 4
    ranks: int = 1
    kv: str = "device"
    resident: int = 0
    stage: int = 0
    stages: int = 4


class Way(Protocol):
    """One way, placed on a device. `moved` are running totals; `held` is what rests, and its peak."""

    def place(self, dit: AvatarDiT, source: TensorSource) -> None: ...

    def caches(self) -> Maker: ...

    def relay(self) -> Relay: ...

    def moved(self) -> dict[str, int]: ...

    def held(self) -> dict[str, int]: ...

    def release(self) -> None: ...


class Ours:
    """A strategy of this library; `cells` of them share each arrival of a unit."""

    def __init__(
        self, setting: Setting, strategy: Any, cells: int = 1, hoist: int = 1, kind: str | None = None
    ) -> None:
        self.setting, self.strategy, self.cells, self.hoist, self.kind = setting, strategy, cells, hoist, kind
        accelerator = "cuda" if setting.device.type == "cuda" else "cpu"
        strategy.settle(accelerator)
        Fabric(accelerator=accelerator, devices=setting.ranks, strategy=strategy).launch()

    def place(self, dit: AvatarDiT, source: TensorSource) -> None:
        dit.hoist = self.hoist * self.strategy.hoists
        if self.kind is not None:
            source = quantised(source, self.kind, quantise_linears(dit, self.kind))
        self.strategy.arrange(dit, self.setting.steps, "inline")
        self.strategy.place(dit, source, self.setting.dtype)

    def caches(self) -> Maker:
        if self.setting.kv == "none":
            return NoCaches
        if self.setting.kv == "device":
            return filled(self.strategy.make_caches)
        return filled(away(self.setting.kv, self.strategy.traffic))

    def relay(self) -> Relay:
        return self.strategy.relay(self.setting.steps, self.cells)

    def moved(self) -> dict[str, int]:
        moved = self.strategy.traffic
        return {
            "weights_in": moved.host + moved.gathered,
            "hidden_in": moved.received - moved.gathered,
            "fetches": moved.fetches,
            "caches_in": moved.caches_in,
            "caches_out": moved.caches_out,
        }

    def held(self) -> dict[str, int]:
        moved = self.strategy.traffic
        return {"weights_device": moved.held, "weights_host": moved.parked}

    def release(self) -> None:
        self.strategy.release()


class Fsdp2(Ours):
    """FSDP2's own streaming, counted from outside. With one rank nothing is gathered, and nothing is counted."""

    def __init__(self, setting: Setting, strategy: FsdpFull) -> None:
        super().__init__(setting, strategy)
        self._open = ExitStack()
        self.watch: Watch | None = None

    def place(self, dit: AvatarDiT, source: TensorSource) -> None:
        super().place(dit, source)
        self.watch = self._open.enter_context(Watch(dit, self.strategy))

    def moved(self) -> dict[str, int]:
        assert self.watch is not None
        came = {"weights_in": self.watch.received + self.watch.copied, "fetches": self.watch.fetches}
        return super().moved() | came

    def held(self) -> dict[str, int]:
        assert self.watch is not None
        return {
            "weights_device": self.strategy.traffic.held + self.watch.above,
            "weights_host": self.strategy.traffic.parked,
        }

    def release(self) -> None:
        self._open.close()
        super().release()


class Alone:
    """One stage of a diagonal pipeline by itself: hidden states come from host memory and go back there."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.traffic = setting, Traffic()

    def place(self, dit: AvatarDiT, source: TensorSource) -> None:
        setting = self.setting
        self.table = layer_table(setting.stages, setting.steps, layer_costs(dit))
        dit.stage = self.table.stages[setting.stage].layers
        retype(dit, setting.dtype)  # what is not of this stage stays on meta, and tells its type
        self.traffic.held = place_resident(dit, source, setting.dtype, setting.device)

    def caches(self) -> Maker:
        return NoCaches if self.setting.kv == "none" else filled(StreamCaches)

    def relay(self) -> Relay:
        return StageAlone(self.setting.steps, self.table, self.setting.stage, self.traffic)

    def moved(self) -> dict[str, int]:
        return {"weights_in": 0, "fetches": 0, "hidden_in": self.traffic.received, "hidden_out": self.traffic.sent}

    def held(self) -> dict[str, int]:
        return {"weights_device": self.traffic.held, "weights_host": 0}

    def release(self) -> None:
        pass


class Peer:
    """What peers share: the whole model on one device, one cell a pass, conditioning in every cell.

    `weights_in`, `here` and `most` are bytes of weights: brought in so far, on the device now, and at most.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, self.traffic = setting, Traffic()
        self.weights_in = self.fetches = self.here = self.most = 0
        self._open = ExitStack()

    def place(self, dit: AvatarDiT, source: TensorSource) -> None:
        dit.hoist = 0
        self.attach(dit, source)

    def attach(self, dit: AvatarDiT, source: TensorSource) -> None:
        raise NotImplementedError

    def came(self, nbytes: int) -> None:
        self.weights_in, self.fetches, self.here = self.weights_in + nbytes, self.fetches + 1, self.here + nbytes
        self.most = max(self.most, self.here)

    def went(self, nbytes: int) -> None:
        self.here -= nbytes

    def caches(self) -> Maker:
        if self.setting.kv == "none":
            return NoCaches
        return filled(StreamCaches if self.setting.kv == "device" else away(self.setting.kv, self.traffic))

    def relay(self) -> Relay:
        return LocalRelay(self.setting.steps)

    def moved(self) -> dict[str, int]:
        found = {"weights_in": self.weights_in, "fetches": self.fetches}
        return found | {"caches_in": self.traffic.caches_in, "caches_out": self.traffic.caches_out}

    def held(self) -> dict[str, int]:
        return {"weights_device": self.most, "weights_host": self.traffic.parked}

    def release(self) -> None:
        self._open.close()


def away(kv: str, traffic: Traffic) -> Maker:
    """Caches in host memory, behind our ring or moved as the reference moves them."""

    def made(shape: CacheShape, steps: range, like: Tensor, origin: int) -> StreamCaches:
        kind = HostCaches if kv == "host" else ReferenceCaches
        return kind(shape, steps, like, origin, traffic)

    return made


class Prefix(FsdpStream):
    """Ours, but for one choice: the blocks that rest on the device are the first ones, as other libraries choose."""

    def settled(self, layers: range) -> list[str]:
        return [f"blocks.{layer}" for layer in layers[: self.resident]]


class Pageable(FsdpStream):
    """Ours, but for one choice: weights rest in memory that is not page-locked."""

    def place(self, dit: AvatarDiT, source: TensorSource, dtype: torch.dtype) -> None:
        def unlocked(nbytes: int, device: torch.device, pinned: bool = False) -> Tensor:
            return allocate(nbytes, device)

        with mock.patch.object(sources, "allocate", unlocked), mock.patch.object(sources, "pin"):
            super().place(dit, source, dtype)


def ours(
    cells: int = 1,
    hoist: int = 1,
    slots: int = 2,
    source: str = "host",
    kind: str | None = None,
    strategy: type[FsdpStream] = FsdpStream,
) -> Callable[[Setting], Way]:
    """`fsdp_stream`, or an ablation of it, with these settings."""

    def way(setting: Setting) -> Way:
        caches = "host" if setting.kv == "host" else "device"
        made = strategy(slots, source, resident=setting.resident, caches=caches)
        return Ours(setting, made, cells, hoist, kind)

    return way


def kinds() -> dict[str, Callable[[Setting], Way]]:
    """Every way, by the name that it has in a row (`abouts.ABOUTS` says what each is)."""
    from liveavatar.benching import peers

    streams = {
        **{f"stream_k{cells}": ours(cells=cells) for cells in (1, 2, 4)},
        "stream_k4_auto": ours(cells=4),
        "stream_k4_plain": ours(cells=4, hoist=0),
        "stream_k4_r3": ours(cells=4, slots=3),
        "stream_k4_prefix_auto": ours(cells=4, strategy=Prefix),
        "stream_k4_pageable": ours(cells=4, strategy=Pageable),
        "stream_k4_fp8": ours(cells=4, kind="fp8"),
        "stream_peers": ours(cells=4, source="peers"),
    }
    return {
        "resident": lambda setting: Ours(setting, SingleDevice()),
        "resident_plain": lambda setting: Ours(setting, SingleDevice(), hoist=0),
        "resident_fp8": lambda setting: Ours(setting, SingleDevice(), kind="fp8"),
        "fsdp2_reference": lambda setting: Fsdp2(setting, FsdpFull(wrap="reference")),
        "fsdp2_units": lambda setting: Fsdp2(setting, FsdpFull()),
        "fsdp2_offload": lambda setting: Fsdp2(setting, HsdpOffload()),
        "diagonal_stage": Alone,
        **streams,
        **peers.kinds(),
    }
