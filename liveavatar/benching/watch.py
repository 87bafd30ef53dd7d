"""Counts what a strategy holds and moves while a stream runs: the ring by its own account, FSDP2 from outside."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
from torch.distributed.tensor import DTensor

from liveavatar.models.dit.model import AvatarDiT


class Watch:
    """Use as a context around the stream.

    shards: bytes of weights that rest on the device. above: the most that lay on it beyond them. received, copied:
    bytes of weights taken from other ranks and from host memory. fetches: units brought in.

    FSDP2 has no account of its own: gathers are counted where they are called, and whole weights and gather buffers
    that are alive are measured then, after the copy out of the buffer, and whenever a unit computes.
    """

    def __init__(self, dit: AvatarDiT, strategy: Any) -> None:
        self.dit, self.strategy = dit, strategy
        self.fsdp2 = any(isinstance(parameter, DTensor) for parameter in dit.parameters())
        self.shards = self.above = self.received = self.copied = self.fetches = 0
        self._buffers: list[weakref.ref[Tensor]] = []
        self._params: weakref.WeakSet[FSDPParam] = weakref.WeakSet()

    def __enter__(self) -> Watch:
        self._gather, self._room = dist.all_gather_into_tensor, FSDPParam.alloc_all_gather_outputs
        if self.fsdp2:
            dist.all_gather_into_tensor = self._gathered  # type: ignore[assignment]
            FSDPParam.alloc_all_gather_outputs = lambda param: self._made_room(param)  # type: ignore[method-assign]
            self._hooks = [unit.register_forward_hook(self._computed) for unit in self.dit.units().values()]
        return self

    def __exit__(self, *ended: object) -> None:
        moved = self.strategy.traffic
        if self.fsdp2:
            dist.all_gather_into_tensor = self._gather  # type: ignore[assignment]
            FSDPParam.alloc_all_gather_outputs = self._room  # type: ignore[method-assign]
            for hook in self._hooks:
                hook.remove()
            self.shards = moved.held
            return
        ring = getattr(self.strategy, "ring", None)
        self.above = ring.nbytes if ring is not None else 0
        self.shards = moved.held - self.above
        self.received, self.copied, self.fetches = moved.gathered, moved.host, moved.fetches

    def _gathered(self, output: Tensor, shard: Tensor, *more: Any, **named: Any) -> Any:
        self.received += output.nbytes - shard.nbytes
        self.copied += shard.nbytes if self.strategy.traffic.parked else 0
        self.fetches += 1
        self._buffers.append(weakref.ref(output))
        self._look()
        return self._gather(output, shard, *more, **named)

    def _made_room(self, param: FSDPParam) -> None:
        self._params.add(param)
        self._room(param)
        self._look()

    def _computed(self, unit: nn.Module, given: Any, passed: Any) -> None:
        self._look()

    def _look(self) -> None:
        self._buffers = [ref for ref in self._buffers if ref() is not None]
        alive = {storage.data_ptr(): storage.nbytes() for storage in self._storages()}
        self.above = max(self.above, sum(alive.values()))

    def _storages(self) -> Iterator[Any]:
        tensors = [ref() for ref in self._buffers]
        tensors += [tensor for param in self._params for tensor in param.all_gather_outputs]
        for tensor in tensors:
            if tensor is not None and tensor.untyped_storage().nbytes():
                yield tensor.untyped_storage()
