"""Streaming unshard: each unit is brought in just before it computes and let go right after.

The bound on top of the shards is `slots` units, whatever the world size: no copies in or out, no root unit that stays
gathered. The ranks of a shard group compute the same request, each the whole of it or, with parallel.ulysses_size, by
sequence, and the output rank shows it; or each computes requests of its own.
"""

from __future__ import annotations

import torch

from liveavatar.checkpoint.read import TensorSource
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.strategies.base import WholeLattice
from liveavatar.strategies.mates import Mates
from liveavatar.strategies.streaming import StreamingStrategy
from liveavatar.strategies.voting import Voting


class FsdpStream(WholeLattice, StreamingStrategy):
    """Weights streamed through a ring of `slots`, from where they rest.

    Where the model hoists, the hot parts of units come in for every pass, and what prepares conditioning only when a
    prompt or a block asks for it; slots have the size of the largest part.

    source: `peers`, shards on the ranks; `host`, one copy in each machine's memory; `disk`, one mapped file in
        `spill_dir` (null: the system's folder for temporary files); `auto`, peers above one rank and host at one.
    resident: transformer blocks that stay on the device for good (their hot parts, where the model hoists), spread
        evenly: an even spread lets copies and computation overlap where a prefix would not. A configuration may say
        `auto`: as many as there is room for.
    caches: `device`, or `host`: the rings of all steps rest in host memory and pass through two rooms on the device.
    cells_in_flight: independent cells that share each arrival of a unit; None leaves it to the schedule.
    debug: check that no slot is refilled while it is lent, and fill freed slots with NaNs.
    timeout_s: how long a rank waits for another.
    Raises ValueError for values that cannot work.
    """

    name = "fsdp_stream"
    sources = ("auto", "peers", "host", "disk")

    def __init__(
        self,
        slots: int = 2,
        source: str = "auto",
        resident: int | str = 0,
        caches: str = "device",
        cells_in_flight: int | None = None,
        spill_dir: str | None = None,
        debug: bool = False,
        timeout_s: float = 120.0,
    ) -> None:
        super().__init__(slots, source, resident, caches, cells_in_flight, spill_dir, debug, timeout_s)

    def arrange(self, dit: AvatarDiT, steps: int, decode: str, ulysses_size: int = 1) -> None:
        super().arrange(dit, steps, decode, ulysses_size)
        if self.resident > dit.num_layers:
            raise ValueError(
                f"strategy.resident={self.resident}, but the model has {dit.num_layers} transformer blocks: choose "
                "fewer, or leave the strategy out to keep everything resident"
            )

    def place(self, dit: AvatarDiT, source: TensorSource, dtype: torch.dtype) -> None:
        chosen = self.source
        if chosen == "auto":
            chosen = "peers" if self.world_size > 1 else "host"
        keys = [0 if chosen == "peers" else self.machine_of(rank) for rank in range(self.world_size)]
        mates = Mates.by(keys, self.global_rank, self.timeout)
        self.stream_in(dit, source, dtype, chosen, mates)
        self._chosen = chosen

    @property
    def gathers(self) -> bool:
        return self.world_size > 1 and self.source in ("peers", "auto")

    def take_requests(self, dit: AvatarDiT) -> None:
        super().take_requests(dit)
        if self.gathers:  # units from host or disk need no other rank
            dit.residency = Voting(dit.residency, list(dit.units()), self.device)

    def linger(self, dit: AvatarDiT) -> None:
        if isinstance(dit.residency, Voting):
            dit.residency.linger(lambda: dit([]))

    def summary(self) -> str:
        return (
            f"fsdp_stream on {self.world_size} × {self.device.type}, weights from {self._chosen}: "
            f"{self.held_words(self._chosen)}; {self.computing()}"
        )
