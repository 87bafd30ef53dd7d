"""One rank of a group whose units compute compiled, strategy after strategy; leaves latents and what was compiled."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from liveavatar.checkpoint.quantised import quantised
from liveavatar.checkpoint.read import RandomWeights, TensorSource
from liveavatar.models.dit.quantised import quantise_linears
from liveavatar.ops.compiled import compile_stretches
from liveavatar.sampling.conditioning import RolloutSettings
from liveavatar.sampling.noise import CounterDistance, CounterNoise
from liveavatar.sampling.rollout import Rollout
from liveavatar.sampling.scheduler import EulerSampler
from tests.scene import conditioning, meta_dit, sink_of
from tests.strategies.topologies import KINDS, TIMEOUT_S, WIDE
from tests.strategies.topology_worker import launched

STEPS, BLOCKS = 2, 5
"""The sink is refreshed after the fourth block."""


@dataclass(frozen=True)
class Way:
    """One strategy, with units compiled by `backend` (None: not at all)."""

    name: str
    strategy: str
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    backend: str | None = "eager"
    ulysses: int = 1
    hoist: bool = True
    wide: bool = False
    kind: str | None = None
    cache: str | None = None


PLAIN = Way("plain", "replicated", backend=None)
WAYS: dict[int, tuple[Way, ...]] = {
    1: (
        PLAIN,
        Way("resident", "replicated"),
        Way("wide", "replicated", wide=True),
        Way("disk", "fsdp_stream", {"source": "disk", "debug": True}),
        Way("unhoisted", "fsdp_stream", {"source": "host", "slots": 3}, hoist=False),
        Way("small plain", "replicated", backend=None, kind="fp8"),
        Way("small", "fsdp_stream", {"source": "host"}, kind="fp8"),
    ),
    2: (
        PLAIN,
        Way("peers", "fsdp_stream", {"source": "peers"}),
        Way("host", "fsdp_stream", {"source": "host", "caches": "host", "resident": 1}),
        Way("full", "fsdp_full"),
        Way("reference", "fsdp_full", {"wrap": "reference"}),
        Way("hybrid", "hsdp_offload"),
        Way("layers", "diagonal_pipeline"),
        Way("steps", "timestep_pipeline"),
        Way("lockstep", "timestep_pipeline", {"source": "peers"}),
        Way("small plain", "replicated", backend=None, kind="int8"),
        Way("small peers", "fsdp_stream", {"source": "peers"}, backend=None, kind="int8"),
        Way("small shards", "fsdp_full", backend=None, kind="int8"),
        Way("fp8 plain", "replicated", backend=None, kind="fp8"),
        Way("fp8 shards", "fsdp_full", backend=None, kind="fp8"),
        Way("cached plain", "replicated", backend=None, cache="fp8"),
        Way("cached layers", "diagonal_pipeline", {"caches": "host"}, backend=None, cache="fp8"),
        Way("cached steps", "timestep_pipeline", backend=None, cache="fp8"),
        Way("cached full", "fsdp_full", backend=None, cache="fp8"),
        Way("cached shared", "replicated", backend=None, cache="fp8", ulysses=2),
        Way("shared plain", "replicated", backend=None, ulysses=2),
        Way("shared", "replicated", ulysses=2),
    ),
}


def latents(way: Way) -> tuple[Tensor | None, dict[str, Any]]:
    """The stream of one way, and what PyTorch compiled for it beside what there was from the ways before."""
    torch._dynamo.utils.counters.clear()
    strategy = launched(KINDS[way.strategy](timeout_s=TIMEOUT_S, **way.options), int(os.environ["WORLD_SIZE"]))
    model = meta_dit(**(WIDE if way.wide else {}))
    model.hoist = int(way.hoist and strategy.hoists)
    model.cache_kind = way.cache
    source: TensorSource = RandomWeights(0)
    if way.kind is not None:
        source = quantised(source, way.kind, quantise_linears(model, way.kind))
    strategy.arrange(model, STEPS, "inline", way.ulysses)
    strategy.place(model, source, torch.float32)
    if way.backend is not None:
        compile_stretches(model, way.backend, strategy.device)
    rollout = Rollout(
        model, conditioning(), EulerSampler(STEPS), RolloutSettings(), CounterNoise(0), CounterDistance(0),
        relay=strategy.relay(STEPS, 1), caches=strategy.make_caches,
    )  # fmt: skip
    found = [block.latents[0].clone() for block in rollout.blocks(BLOCKS, sink_of(rollout))]
    strategy.release()
    counters = torch._dynamo.utils.counters
    about = {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}
    return torch.stack(found) if found else None, about


def main() -> None:
    torch.set_num_threads(1)
    folder, rank, world = Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for way in WAYS[world]:
        found, about = latents(way)
        held = {} if found is None else {"latents": found.contiguous()}
        save_file(held, folder / f"{way.name}-{rank}.safetensors", {"about": json.dumps(about)})
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
