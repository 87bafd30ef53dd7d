"""The streams that every strategy must reproduce, and what workers report of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from liveavatar.models.dit.model import AvatarDiT
from tests.scene import conditioning, latents_of, make_rollout

BLOCKS = 7
"""The ring wraps and the sink is refreshed after 4 blocks."""


@dataclass(frozen=True)
class StreamCase:
    """One stream on one strategy. `delays` makes ranks late at random."""

    slots: int = 2
    source: str = "auto"
    steps: int = 4
    actors: int = 1
    in_flight: int = 1
    dtype: str = "float32"
    delays: bool = False

    @property
    def name(self) -> str:
        extras = [f"{self.actors}_actors"] * (self.actors > 1) + [f"{self.in_flight}_in_flight"] * (self.in_flight > 1)
        extras += ["bfloat16"] * (self.dtype == "bfloat16") + ["delays"] * self.delays
        return "-".join([self.source, f"{self.slots}_slots", f"{self.steps}_steps", *extras])

    def latents(self, model: AvatarDiT) -> Tensor:
        given = conditioning(actors=self.actors)
        rollout = make_rollout(model, given, steps=self.steps, cells_in_flight=self.in_flight)
        return latents_of(rollout, BLOCKS)

    @property
    def storage(self) -> torch.dtype:
        return getattr(torch, self.dtype)


HOST = (
    StreamCase(2, "host"),
    StreamCase(3, "host", steps=3, actors=2),
    StreamCase(5, "host", steps=3, in_flight=2),
)
PEERS = (
    StreamCase(2, "peers"),
    StreamCase(3, "peers", steps=3),
    StreamCase(5, "peers", steps=3, actors=2),
    StreamCase(2, "peers", in_flight=4),
    StreamCase(3, "peers", dtype="bfloat16"),
    StreamCase(2, "peers", steps=3, delays=True),
)
CASES = {1: (StreamCase(2, "auto"), *HOST), 2: (StreamCase(3, "auto", steps=3), *HOST, *PEERS), 4: (*HOST[:2], *PEERS)}
"""By world size; one process cannot gather from peers."""
