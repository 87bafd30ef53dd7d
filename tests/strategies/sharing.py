"""Ranks that share weights while each computes requests of its own: cases, and what one rank does in them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from liveavatar.checkpoint.read import RandomWeights
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.strategies.voting import Voting
from tests.scene import conditioning, latents_of, make_rollout, meta_dit
from tests.strategies.topologies import KINDS, TIMEOUT_S
from tests.strategies.topology_worker import Late, launched

STEPS = 3


@dataclass(frozen=True)
class Stream:
    """A request: its seed, its length, its speakers, and how it is walked. `broken` fails in the middle of a pass."""

    seed: int
    blocks: int
    actors: int = 1
    width: int = 8
    in_flight: int = 1
    broken: bool = False

    def latents(self, model: AvatarDiT) -> Tensor:
        given = conditioning(w=self.width, actors=self.actors, seed=self.seed)
        rollout = make_rollout(model, given, steps=STEPS, seed=self.seed, cells_in_flight=self.in_flight)
        return latents_of(rollout, self.blocks)


SHORT, LONG, WIDE = Stream(1, 2), Stream(2, 6), Stream(3, 3, actors=2, width=16)
AHEAD, BROKEN = Stream(4, 5, in_flight=3), Stream(5, 3, broken=True)
HANDS: dict[int, list[list[Stream]]] = {
    2: [[LONG], [SHORT, BROKEN]],
    3: [[BROKEN, WIDE, SHORT], [], [AHEAD]],
    4: [[SHORT], [LONG, SHORT], [], [BROKEN, WIDE]],
}
"""By world size, the requests of each rank: of different lengths and sizes, none at all, and some that fail."""


@dataclass(frozen=True)
class Sharing:
    """One strategy whose ranks compute requests of their own. `delays` makes ranks late at random."""

    strategy: str
    delays: bool = False
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        words = [self.strategy, *[f"{key}_{value}" for key, value in self.options.items()]]
        return "-".join(["requests", *words, *["delays"] * self.delays])


def _of(strategy: str, delays: bool = False, **options: Any) -> Sharing:
    return Sharing(strategy, delays, options)


SHARINGS: dict[int, tuple[Sharing, ...]] = {
    2: (
        _of("fsdp_stream", source="host"),
        _of("fsdp_stream", source="peers", resident=1, debug=True),
        _of("fsdp_full", wrap="reference", prefetch=0),
        _of("fsdp_full", unshard="whole"),
        _of("fsdp_full", reshard_after_forward=False),
        _of("replicated"),
        _of("hsdp_offload", shard_size=1),
    ),
    3: (
        _of("fsdp_stream", delays=True, source="peers", slots=3),
        _of("fsdp_full", delays=True, prefetch=2),
    ),
    4: (_of("hsdp_offload", delays=True, shard_size=2), _of("fsdp_stream", source="peers")),
}
"""By world size."""


class Broken(Exception):
    """What a unit raises in the middle of a pass."""


def run(case: Sharing, folder: Path) -> None:
    """All requests of this rank, and then the passes that the others still need."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    strategy, model = launched(KINDS[case.strategy](timeout_s=TIMEOUT_S, **case.options), world), meta_dit()
    model.hoist = int(strategy.hoists and not strategy.gathers)
    strategy.arrange(model, STEPS, "inline")
    strategy.place(model, RandomWeights(0), torch.float32)
    strategy.take_requests(model)
    lock = model.residency if isinstance(model.residency, Voting) else None
    if case.delays and lock is not None:
        lock.within = Late(lock.within, rank)
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for stream in HANDS[world][rank]:
            if stream.broken:
                _fail(model, stream)
            else:
                found[f"seed_{stream.seed}"] = stream.latents(model).contiguous()
        strategy.linger(model)
    said = strategy.collect(rank)
    about = {"collected": said, "idle": None if lock is None else lock.idle_passes, "summary": strategy.summary()}
    strategy.release()
    found["present"] = torch.ones(1)  # a rank without requests leaves a file too
    save_file(found, folder / f"{case.name}-{rank}.safetensors", {"about": json.dumps(about)})


def _fail(model: AvatarDiT, stream: Stream) -> None:
    """A stream that ends with an error in the second unit of its second pass."""
    block, seen = model.get_submodule("blocks.1"), 0

    def fail(*given: object) -> None:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise Broken

    hook = block.register_forward_pre_hook(fail)
    try:
        stream.latents(model)
    except Broken:
        return
    finally:
        hook.remove()
    raise AssertionError("nothing failed")
