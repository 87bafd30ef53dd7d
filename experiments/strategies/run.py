"""What does each strategy hold on a device, and what does it move, for the same stream?

Runs one stream of 11 blocks × 4 steps on a mid-small DiT with every strategy in groups of 1, 2 and 4 processes (CPU,
gloo), checks that the latents are those of a single device, and writes the table.

    python -m experiments.strategies.run --out experiments/strategies
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist  # noqa: TID251
from lightning.fabric import Fabric
from torch import Tensor

from experiments.tables import save
from liveavatar.benching.watch import Watch
from liveavatar.checkpoint.read import RandomWeights
from liveavatar.checkpoint.slab import SlabLayout
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.sampling.conditioning import Conditioning, NoPose, RolloutSettings, SinkPlan
from liveavatar.sampling.noise import CounterDistance, CounterNoise
from liveavatar.sampling.rollout import Rollout
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.strategies.fsdp import FsdpFull, HsdpOffload
from liveavatar.strategies.pipeline import DiagonalPipeline, TimestepPipeline
from liveavatar.strategies.single import SingleDevice
from liveavatar.strategies.stream import FsdpStream
from liveavatar.tracking import stamp

log = logging.getLogger("strategies")

SIZES: dict[str, Any] = {
    "dim": 160,
    "ffn_dim": 432,  # 2.7 × dim, as in the 14B model
    "num_heads": 4,
    "num_layers": 12,
    "audio_inject_layers": [0, 3, 6, 9],
    "audio_dim": 48,
    "audio_layers": 13,
    "text_dim": 128,
    "text_len": 32,
    "freq_dim": 64,
}
BLOCKS, STEPS, GRID = 11, 4, (8, 8)
FEW = 5
"""Blocks with FSDP2, whose passes are all alike: every gather waits for all processes, and a core has several."""
WORLDS = (1, 2, 4)


@dataclass(frozen=True)
class Choice:
    """One row of the table: a strategy with its options."""

    label: str
    make: Any
    cells: int = 1
    worlds: tuple[int, ...] = WORLDS
    blocks: int = BLOCKS
    hoist: int = 1


def choices() -> list[Choice]:
    rows = [
        Choice("single_device", SingleDevice, worlds=(1,)),
        Choice("fsdp_full, wrap=reference", lambda: FsdpFull(wrap="reference"), blocks=FEW),
        Choice("fsdp_full, wrap=units", FsdpFull, blocks=FEW),
        Choice("fsdp_full, unshard=whole", lambda: FsdpFull(unshard="whole"), blocks=FEW),
        Choice("hsdp_offload", HsdpOffload, blocks=FEW),
    ]
    for cells in (1, 2, 4):
        for slots in (2, 3) if cells == 1 else (2,):
            label = f"slots={slots}, K={cells}"
            rows.append(
                Choice(f"fsdp_stream, peers, {label}", lambda s=slots: FsdpStream(s, "peers"), cells, WORLDS[1:])
            )
            rows.append(Choice(f"fsdp_stream, host, {label}", lambda s=slots: FsdpStream(s, "host"), cells))
    return [
        *rows,
        Choice("fsdp_stream, host, slots=2, K=4, resident=6", lambda: FsdpStream(2, "host", resident=6), 4),
        Choice("fsdp_stream, host, slots=2, K=4, caches=host", lambda: FsdpStream(2, "host", caches="host"), 4),
        Choice("fsdp_stream, host, slots=2, K=1, hoist=0", lambda: FsdpStream(2, "host"), hoist=0),
        Choice("fsdp_stream, host, slots=2, K=4, hoist=0", lambda: FsdpStream(2, "host"), 4, hoist=0),
        Choice("fsdp_stream, host, slots=2, K=4, hoist=4", lambda: FsdpStream(2, "host"), 4, hoist=4),
        Choice("timestep_pipeline", TimestepPipeline),
        Choice("timestep_pipeline, host", lambda: TimestepPipeline("host"), worlds=WORLDS[1:]),
        Choice("timestep_pipeline, peers, in lock-step", lambda: TimestepPipeline("peers"), worlds=WORLDS[1:]),
        Choice("diagonal_pipeline", DiagonalPipeline),
        Choice("diagonal_pipeline, host, K=1", lambda: DiagonalPipeline(source="host"), worlds=WORLDS[1:]),
        Choice("diagonal_pipeline, host, K=4", lambda: DiagonalPipeline(source="host"), 4, WORLDS[1:]),
        Choice(
            "diagonal_pipeline, host, K=4, caches=host",
            lambda: DiagonalPipeline(source="host", caches="host"),
            4,
            WORLDS[1:],
        ),
        Choice("diagonal_pipeline, step_groups=2", lambda: DiagonalPipeline(2), worlds=(4,)),
        Choice("diagonal_pipeline, step_groups=2, peers", lambda: DiagonalPipeline(2, "peers"), worlds=(4,)),
    ]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Voice:
    """Speech features that are a pure function of the block."""

    def block(self, index: int) -> Tensor:
        return draw(1000 + index, 1, SIZES["audio_layers"], SIZES["audio_dim"], 12)


def scene() -> Conditioning:
    h, w = GRID
    return Conditioning(
        text=draw(1, 1, 7, SIZES["text_dim"]),
        reference=draw(2, 1, 16, 1, h, w),
        motion=draw(3, 1, 16, 19, h, w),
        audio=Voice(),
        pose=NoPose(torch.zeros(1, 16, 3, h, w)),
    )


def measure(choice: Choice, world: int) -> tuple[dict[str, Any], Tensor | None]:
    """One row on this rank, and its finished latents."""
    strategy = choice.make()
    Fabric(accelerator="cpu", devices=world, strategy=strategy).launch()
    with torch.device("meta"):
        dit = AvatarDiT(**SIZES).eval()
    units = {name: SlabLayout.of(unit, torch.float32).nbytes for name, unit in dit.units().items()}
    block = max(size for name, size in units.items() if name.startswith("blocks."))
    dit.hoist = choice.hoist * strategy.hoists
    strategy.arrange(dit, STEPS, "inline")
    strategy.place(dit, RandomWeights(0), torch.float32)
    given = scene()
    rollout = Rollout(
        dit,
        given,
        EulerSampler(STEPS),
        RolloutSettings(),
        CounterNoise(0),
        CounterDistance(0),
        relay=strategy.relay(STEPS, choice.cells),
        caches=strategy.make_caches,
    )
    sink = SinkPlan(given.reference, lambda: given.motion, refresh=4)
    began = time.perf_counter()
    with Watch(dit, strategy) as watch:
        found = [finished.latents for finished in rollout.blocks(choice.blocks, sink)]
    seconds, moved = time.perf_counter() - began, strategy.traffic
    blocks = choice.blocks
    ticks, utilisation = rollout.relay.occupancy(BLOCKS)
    row = {
        "strategy": choice.label,
        "ranks": world,
        "shards_blocks": watch.shards / block,
        "above_shards_blocks": watch.above / block,
        "host_blocks": moved.parked / block,
        "received_blocks_per_video_block": watch.received / block / blocks,
        "copied_blocks_per_video_block": watch.copied / block / blocks,
        "unit_fetches_per_video_block": watch.fetches / blocks,
        "hidden_kb_per_video_block": (moved.received - moved.gathered) / blocks / 1e3,
        "ticks": ticks,
        "utilisation": utilisation,
        "cache_mb": rollout.caches.nbytes / 1e6,
        "hoisted_mb": rollout.hoisted_bytes / 1e6,
        "seconds_cpu_not_indicative": seconds,
    }
    strategy.release()
    return row, torch.cat(found) if found else None


def worker(folder: Path) -> None:
    """All rows of this group's size."""
    torch.set_num_threads(1)
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    rows = []
    for choice in choices():
        if world not in choice.worlds:
            continue
        began = time.perf_counter()
        row, latents = measure(choice, world)
        path = folder / "truth.pt"
        if choice.label == "single_device":
            torch.save(latents, path)
        row["equal"] = latents is None or torch.equal(latents, torch.load(path)[: len(latents)])
        rows.append(row)
        if rank == 0:
            log.info("%d ranks, %s: %.1f s with its start", world, choice.label, time.perf_counter() - began)
    (folder / f"{world}-{rank}.json").write_text(json.dumps(rows))
    if dist.is_initialized():
        dist.destroy_process_group()


def group(world: int, folder: Path) -> list[dict[str, Any]]:
    """Start a group and give its rows: the largest figure of any rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(world):
        mine = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        mine |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "strategies"}
        command = [sys.executable, "-m", "experiments.strategies.run", "--worker", str(folder)]
        started.append(subprocess.Popen(command, env=os.environ | {name: str(value) for name, value in mine.items()}))
    ended = [process.wait(900) for process in started]
    if any(ended):
        raise SystemExit(f"a process of the group of {world} failed")
    ranks = [json.loads((folder / f"{world}-{rank}.json").read_text()) for rank in range(world)]
    return [_worst(rows) for rows in zip(*ranks, strict=True)]


def _worst(rows: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    found = {key: max(row[key] for row in rows) for key in rows[0]}
    return found | {"equal": all(row["equal"] for row in rows)}


def table(rows: list[dict[str, Any]]) -> str:
    head = "| " + " | ".join(key.replace("_", " ") for key in rows[0]) + " |"
    lines = [head, "|" + " --- |" * len(rows[0])]
    for row in rows:
        cells = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for results.csv, table.md and stamp.json")
    parser.add_argument("--worlds", type=int, nargs="+", default=WORLDS, choices=WORLDS, help="sizes of the groups")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for world in sorted({1, *given.worlds}) for row in group(world, Path(folder))]
    print(table(rows))
    if given.out:
        save(given.out, rows, stamp("cpu", 1, max(given.worlds)), digits=".4f")
        (given.out / "table.md").write_text(table(rows) + "\n")


if __name__ == "__main__":
    main()
