"""One device, all weights resident: the truth that every other strategy is compared with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.fabric.strategies import SingleDeviceStrategy
from torch import Tensor

from liveavatar.checkpoint.read import TensorSource
from liveavatar.models.dit.cache import CacheShape, StreamCaches
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.strategies.base import Traffic, WholeLattice, place_resident


class SingleDevice(WholeLattice, SingleDeviceStrategy):
    """Everything on one device; nothing moves after loading. The device is the first GPU, or the CPU without one."""

    name = "single_device"
    max_devices = 1
    world_size = 1
    cells_in_flight = None

    def __init__(self) -> None:
        super().__init__(device="cpu")
        self.traffic = Traffic()

    def settle(self, accelerator: str) -> None:
        """Choose the device before Fabric starts; `accelerator` is `cpu` or `cuda`."""
        self._root_device = torch.device("cuda", 0) if accelerator == "cuda" else torch.device("cpu")

    @property
    def device(self) -> torch.device:
        return self.root_device

    @property
    def is_output_rank(self) -> bool:
        return True

    def make_caches(self, shape: CacheShape, steps: range, like: Tensor, origin: int) -> StreamCaches:
        return StreamCaches(shape, steps, like, origin)

    def place(self, dit: AvatarDiT, source: TensorSource, dtype: torch.dtype) -> None:
        self.traffic.held = place_resident(dit, source, dtype, self.device)

    def holdings(self) -> dict[str, tuple[int, int]]:
        return {"weights": (self.traffic.held, 0)}

    def summary(self) -> str:
        return f"single_device on {self.device}: {self.traffic.held / 1e6:.1f} MB of DiT weights resident"

    def take_requests(self, dit: AvatarDiT) -> None:
        pass

    def linger(self, dit: AvatarDiT) -> None:
        pass

    def collect(self, value: Any) -> list[Any]:
        return [value]

    def watched(self) -> AbstractContextManager[object]:
        return nullcontext()

    def release(self) -> None:
        pass
