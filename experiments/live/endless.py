"""Does an hour of stream hold more than its first minute?

    python -m experiments.live.endless --out experiments/live --hours 1

`model=micro`, one step, a decoder that decodes nothing, kept alive on a clock that jumps from one appointment to the
next: a voice of one second in every four. Bytes of all tensors, what the session holds, the resident set and the blocks
per second of computing are read at even distances; the same blocks numbered from 1,000,000 on are made beside them.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import liveavatar
from experiments.tables import write
from liveavatar.live.avatar import Avatar
from liveavatar.live.settings import LiveSettings
from liveavatar.memory.readings import Resident

BLOCK_S = 0.48
WORDS = ("sampler.steps=1", "fabric.threads=1", "fabric.accelerator=cpu", "request.size=64*64", "weights=random")
WORDS += ("speech.left_s=0.4", "speech.right_s=0.2", "speech.norm_s=1.0")


class Appointments:
    """A clock on which nothing is waited for: time goes on to what comes next."""

    def __init__(self) -> None:
        self.time, self.next, self.act = 0.0, 1.0, lambda: None

    def now(self) -> float:
        return self.time

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        until = self.time + (seconds or 0.0)
        if self.next <= until:
            self.time, self.next = max(self.time, self.next), self.next + 4.0
            self.act()
        else:
            self.time = until


def tensor_bytes() -> int:
    """Bytes of all storages that are alive."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and not thing.is_meta:
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


def measure(
    avatar: Avatar, image: Path, blocks: int, start: int, readings: int, told: Callable[[dict[str, Any]], object]
) -> None:
    clock, resident = Appointments(), Resident()
    voice = (np.random.default_rng(0).standard_normal(16_000) * 0.1).astype(np.float32)
    session = avatar.session(image, start_block=start, settings=LiveSettings("keep_alive"), clock=clock, decode=False)
    clock.act = lambda: session.push(voice, 16_000)
    every, began = max(1, blocks // readings), time.perf_counter()
    for number, chunk in enumerate(islice(session, blocks), 1):
        spread = float(chunk.latents.pop(chunk.index).std())
        if number % every == 0 or number == min(125, blocks):
            stats = session.stats
            told(
                {
                    "block": chunk.index,
                    "stream_minutes": round(number * BLOCK_S / 60, 2),
                    "tensor_bytes": tensor_bytes(),
                    "session_bytes": stats.held_bytes,
                    "resident_mb": round(resident() / 1e6, 1),
                    "latent_std": round(spread, 4),
                    "blocks_per_s": round(number / (time.perf_counter() - began), 1),
                }
            )
    session.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--readings", type=int, default=6)
    given = parser.parse_args()
    blocks = max(8, round(given.hours * 3600 / BLOCK_S))
    with tempfile.TemporaryDirectory() as folder, liveavatar.load("micro", WORDS) as avatar:
        image = Path(folder) / "grey.png"
        Image.new("RGB", (64, 64), (128, 120, 110)).save(image)
        rows: list[dict[str, Any]] = []

        def told(row: dict[str, Any]) -> None:
            rows.append(row)
            write(given.out, "endless", rows, dict(avatar.loaded.metrics))  # a run that is cut short has its table too

        measure(avatar, image, blocks, 0, given.readings, told)
        measure(avatar, image, max(8, blocks // 10), 1_000_000, 2, told)
        print((given.out / "endless.csv").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
