"""One rank of a group that runs all cases of its world size, one after another, in one process group.

Started by `conftest.py` with the environment that torchrun gives, one process a rank. Leaves for each case a
file of latents and, in the header, what was counted; judging is left to the test.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from safetensors.torch import save_file

from liveavatar.checkpoint.read import RandomWeights
from liveavatar.strategies import ring as ring_module
from liveavatar.strategies.stream import FsdpStream
from tests.scene import meta_dit
from tests.strategies import share_worker, sharing, topology_worker
from tests.strategies.cases import CASES, StreamCase
from tests.strategies.topologies import GOLDENS, TOPOLOGIES
from tests.strategies.topology_worker import Late


class Counted:
    """A fetch that notes what each call adds to the strategy's account, and what the transport was really given."""

    def __init__(self, strategy: FsdpStream) -> None:
        assert strategy.ring is not None
        self.fetch, self.traffic, self.layouts = strategy.ring.fetch, strategy.traffic, strategy.ring.layouts
        self.rows: set[tuple[str, int, int, int, int]] = set()
        self.times: Counter[str] = Counter()
        self.given = 0
        strategy.ring.fetch = self

    def __call__(self, name: str, slot: torch.Tensor) -> Any:
        real, before = dist.all_gather_into_tensor, (self.traffic.received, self.traffic.host)

        def gather(output: torch.Tensor, shard: torch.Tensor, **more: Any) -> Any:
            self.given = shard.nbytes
            return real(output, shard, **more)

        dist.all_gather_into_tensor = gather
        try:
            wait = self.fetch(name, slot)
        finally:
            dist.all_gather_into_tensor = real
        received, host = self.traffic.received - before[0], self.traffic.host - before[1]
        self.times[name] += 1
        self.rows.add((name, self.layouts[name].nbytes, received, host, self.given))
        return wait


def run(case: StreamCase, folder: Path) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    strategy = FsdpStream(slots=case.slots, source=case.source, timeout_s=60)
    Fabric(accelerator="cpu", devices=world, strategy=strategy).launch()
    model = meta_dit()
    strategy.place(model, RandomWeights(0), case.storage)
    ring = strategy.ring
    assert ring is not None
    about = {
        "shared": _shared_rooms(),
        "left_behind": [p.name for p in Path("/dev/shm").glob(f"liveavatar-{os.getpid()}-*")],
        "held": strategy.traffic.held,
        "parked": strategy.traffic.parked,
        "ring": ring.nbytes,
    }
    counted = Counted(strategy)
    if case.delays:
        model.residency = Late(ring, rank)
    ring_module.allocate = _refuse  # all room was made when the model was placed
    latents = case.latents(model)
    ring_module.allocate = ALLOCATE
    about |= {
        "units": {name: layout.nbytes for name, layout in ring.layouts.items()},
        "fetches": sorted(counted.rows),
        "times": counted.times,
        "count": strategy.traffic.fetches,
        "discarded": ring.discarded,
        "empty": all(p.numel() == 0 for p in model.parameters()),
        "output": strategy.is_output_rank,
        "summary": strategy.summary(),
    }
    strategy.release()
    save_file(
        {"latents": latents.contiguous()}, folder / f"{case.name}-{rank}.safetensors", {"about": json.dumps(about)}
    )


ALLOCATE = ring_module.allocate


def _refuse(*given: object, **named: object) -> torch.Tensor:
    raise AssertionError("the ring made room in the middle of a stream")


def _shared_rooms() -> int:
    """How many nameless pieces of memory of ours are mapped into this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum("liveavatar-" in line and line.endswith("(deleted)") for line in lines)


def main() -> None:
    torch.set_num_threads(1)
    folder, world = Path(sys.argv[1]), int(os.environ["WORLD_SIZE"])
    for case in CASES.get(world, ()):
        run(case, folder)
    for topology in TOPOLOGIES[world]:
        topology_worker.run(topology, folder)
    for case in sharing.SHARINGS.get(world, ()):
        sharing.run(case, folder)
    if world == 2:
        for name, kind in product(GOLDENS, ("diagonal_pipeline", "timestep_pipeline")):
            topology_worker.golden(name, kind, folder)
    share_worker.main(world, folder)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
