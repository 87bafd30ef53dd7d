"""What all strategies of several ranks share: how they start under Fabric."""

from __future__ import annotations

import atexit
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.strategies import ModelParallelStrategy
from torch import Tensor
from torch.nn import Module

from liveavatar.models.dit.cache import CacheShape, StreamCaches
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.strategies.base import Traffic
from liveavatar.strategies.faults import RankLost, Roll, of_transport, said
from liveavatar.strategies.launch import Launcher

_MEETINGS = count()
"""Numbers of meetings, the same on all ranks: they come to them in the same order."""


def _part() -> None:
    """Leave the group in an orderly way, where Fabric has not done so."""
    if dist.is_initialized():
        dist.destroy_process_group()


class RankStrategy(ModelParallelStrategy):
    """A Fabric strategy whose ranks divide one model; started by Fabric itself, by torchrun or by Slurm.

    `timeout_s` bounds how long a rank waits for another. Raises ValueError when it is not positive.
    """

    max_devices = 16
    computes: tuple[str, ...]
    divides = "same"

    def __init__(self, timeout_s: float) -> None:
        if timeout_s <= 0:
            raise ValueError(f"strategy.timeout_s={timeout_s} must be positive (seconds to wait for another rank)")
        self.timeout_s, self.timeout = timeout_s, timedelta(seconds=timeout_s)
        super().__init__(self._refuse, timeout=self.timeout)
        self.traffic = Traffic()
        self.roll: Roll | None = None

    @staticmethod
    def _refuse(module: Module, mesh: Any) -> Module:
        raise RuntimeError("units come to life in `place`; Fabric's setup_module has no part in it")

    def settle(self, accelerator: str) -> None:
        """Devices are Fabric's choice here."""

    def _configure_launcher(self) -> None:
        # one process needs no launcher, and Fabric refuses those that start processes in a notebook
        assert self.cluster_environment is not None
        if self.num_processes > 1 and not self.cluster_environment.creates_processes_externally:
            self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_environment(self) -> None:
        # every rank holds a part of the weights: Fabric's `auto` would make this axis one wide on a single node
        self._data_parallel_size = self.num_processes * self.num_nodes
        self._tensor_parallel_size = 1
        super().setup_environment()
        atexit.unregister(_part)
        atexit.register(_part)  # a transport whose threads outlive the interpreter may abort the process
        self.roll = Roll(self.world_size)

    def role(self, rank: int) -> str:
        """What a rank does, in words; nothing where all do the same."""
        return ""

    def take_requests(self, dit: AvatarDiT) -> None:
        """Each rank is to compute requests of its own; called when the weights are placed."""
        self.divides = "requests"

    def linger(self, dit: AvatarDiT) -> None:
        """Take part in what the other ranks still compute; nothing, where they do not need this one."""

    def collect(self, value: Any) -> list[Any]:
        """What every rank says, on each of them, when the last of them has come here. However long that takes:
        a rank that computes cannot be hurried, and one that has ended is noticed."""
        if self.world_size == 1:
            return [value]
        assert self.roll is not None
        key, pause = f"liveavatar/meeting/{next(_MEETINGS)}", 0.001
        come = self.roll.store.add(key, 1)
        while come < self.world_size:
            time.sleep(pause)
            pause = min(2 * pause, 0.25)
            come = self.roll.store.add(key, 0)
            if come < self.world_size and self.roll.ended():
                raise self.lost(ConnectionError("a rank was waited for"))
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Failures of the transport, told as what they mean. Raises RankLost in their place."""
        try:
            yield
        except (RuntimeError, ConnectionError) as error:
            if not of_transport(error):
                raise
            raise self.lost(error) from error

    def lost(self, error: BaseException) -> BaseException:
        if self.roll is None:
            words = "another rank has ended, or did not start within strategy.timeout_s"
            return RankLost(f"{words}={self.timeout_s:g}, before all had met. The transport says: {said(error)}", True)
        roles = [self.role(rank) for rank in range(self.world_size)]
        return self.roll.lost(self.global_rank, roles, error, self.timeout_s)

    def make_caches(self, shape: CacheShape, steps: range, like: Tensor, origin: int) -> StreamCaches:
        """The caches of a stream: on the device."""
        return StreamCaches(shape, steps, like, origin)

    def holdings(self) -> dict[str, tuple[int, int]]:
        """Bytes of weights that rest on this rank: (device, host)."""
        return {"weights": (self.traffic.held, self.traffic.parked)}

    @property
    def device(self) -> torch.device:
        return self.root_device
