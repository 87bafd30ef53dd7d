"""What all strategies of several ranks share: how they start under Fabric."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.strategies import ModelParallelStrategy
from torch import Tensor
from torch.nn import Module

from liveavatar.models.dit.cache import CacheShape, StreamCaches
from liveavatar.strategies.base import Traffic


class RankStrategy(ModelParallelStrategy):
    """A Fabric strategy whose ranks divide one model; started by Fabric itself, by torchrun or by Slurm.

    `timeout_s` bounds how long a rank waits for another. Raises ValueError when it is not positive.
    """

    max_devices = 16

    def __init__(self, timeout_s: float) -> None:
        if timeout_s <= 0:
            raise ValueError(f"strategy.timeout_s={timeout_s} must be positive (seconds to wait for another rank)")
        self.timeout = timedelta(seconds=timeout_s)
        super().__init__(self._refuse, timeout=self.timeout)
        self.traffic = Traffic()

    @staticmethod
    def _refuse(module: Module, mesh: Any) -> Module:
        raise RuntimeError("units come to life in `place`; Fabric's setup_module has no part in it")

    def settle(self, accelerator: str) -> None:
        """Devices are Fabric's choice here."""

    def _configure_launcher(self) -> None:
        # one process needs no launcher, and Fabric refuses those that start processes in a notebook
        if self.num_processes > 1:
            super()._configure_launcher()

    def setup_environment(self) -> None:
        # every rank holds a part of the weights: Fabric's `auto` would make this axis one wide on a single node
        self._data_parallel_size = self.num_processes * self.num_nodes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def make_caches(self, shape: CacheShape, steps: range, like: Tensor, origin: int) -> StreamCaches:
        """The caches of a stream: on the device."""
        return StreamCaches(shape, steps, like, origin)

    def holdings(self) -> dict[str, tuple[int, int]]:
        """Bytes of weights that rest on this rank: (device, host)."""
        return {"weights": (self.traffic.held, self.traffic.parked)}

    @property
    def device(self) -> torch.device:
        return self.root_device
