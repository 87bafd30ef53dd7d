"""A row on the DiT: one way, one stream that is long under way, so many blocks of it measured.

The caches are full from the first cell on (`full`), or there are none (`weights`, for peers that ignore them). The
stream is endless and is broken off, so that what is measured is the steady state: the first blocks, in which orders are
learnt and pages touched, are apart, and the tail in which cells run out is not in it.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from liveavatar.benching.abouts import PLANS
from liveavatar.benching.gauges import CardClock, PassClock, Trace, cap, memory, percentile, settle
from liveavatar.benching.planned import resident_blocks
from liveavatar.benching.shapes import TiledWeights, on_meta, scene
from liveavatar.benching.sizes import keywords
from liveavatar.benching.ways import Setting, Way, kinds
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.sampling.conditioning import RolloutSettings, SinkPlan
from liveavatar.sampling.noise import CounterDistance, CounterNoise
from liveavatar.sampling.rollout import Block, Rollout
from liveavatar.sampling.scheduler import EulerSampler

STEPS = 4
PERIOD = 2
"""Blocks after which a schedule repeats itself, for any number of cells in flight: two of them may end in turn."""


class Course:
    """A row under way. `where` says what it is doing, for when it fails."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.where = job, "start"
        self.device = torch.device("cuda", 0) if job["device"] == "cuda" else torch.device(job["device"])
        self.found: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """All that the row measures, by column."""
        job = self.job
        card = CardClock(self.device)
        self.found |= cap(self.device, job["cap_gib"])
        resident = job["resident"]
        if job["way"].endswith("_auto"):
            told = keywords(job["shape"]), job, PLANS[job["way"]], self.found.get("context_bytes", 0)
            resident = self.found["resident_blocks"] = resident_blocks(*told)
        setting = Setting(
            self.device,
            getattr(torch, job["dtype"]),
            STEPS,
            job["ranks"],
            job["kv"],
            resident,
            job["stage"],
            job["stages"],
        )
        self.where = "load"
        began = time.perf_counter()
        way = kinds()[job["way"]](setting)
        dit = on_meta(job["shape"])
        way.place(dit, TiledWeights(setting.dtype))
        rollout = self.make(way, dit)
        settle(self.device)
        self.found["setup_s"] = time.perf_counter() - began
        self.where = "run"
        try:
            with torch.no_grad():
                self.drive(way, rollout)
        finally:
            way.release()
        self.found |= memory(self.device)
        if most := card.close():
            self.found["card_peak_bytes"] = most
            if job["cap_gib"] is not None:
                self.found["over_cap"] = most > job["cap_gib"] * 2**30
        return self.found

    def make(self, way: Way, dit: AvatarDiT) -> Rollout:
        given = scene(dit, self.job["size"], self.device)
        return Rollout(
            dit,
            given,
            EulerSampler(STEPS),
            RolloutSettings(),
            CounterNoise(0),
            CounterDistance(0),
            relay=way.relay(),
            caches=way.caches(),
        )

    def drive(self, way: Way, rollout: Rollout) -> None:
        """Warm up, measure, and look at one more block through the profiler."""
        job = self.job
        given = rollout.conditioning
        sink = SinkPlan(given.reference, lambda: given.motion, first_block=-1)  # it is filled, not prefilled
        clock = PassClock(rollout.dit, self.device)
        if job["way"] == "diagonal_stage":
            self._stage(way, rollout, sink, clock)
            return
        blocks = rollout.blocks(None, sink)
        latents = [next(blocks).latents for _ in range(job["warm"])]
        settle(self.device)
        before, since = way.moved(), len(clock.passes)
        began = time.perf_counter()
        done = 0
        for done in range(1, job["blocks"] + 1):
            latents.append(self._next(blocks))
            late = job["limit_s"] is not None and time.perf_counter() - began > job["limit_s"]
            if late and done % PERIOD == 0:
                break
        took = time.perf_counter() - began
        self.times(took / (STEPS * done), STEPS * done, clock.seconds(since))
        self.account(way, rollout, before, STEPS * done)
        if self.device.type == "cuda" and job["trace"]:
            self.where = "trace"
            self.traced(blocks)
        blocks.close()  # type: ignore[attr-defined] - a generator
        clock.close()
        if job["latents"] and os.environ.get("RANK", "0") == "0":
            save_file({"latents": torch.cat(latents).float().cpu().contiguous()}, job["latents"])

    def _next(self, blocks: Iterator[Block]) -> Tensor:
        block = next(blocks)
        settle(self.device)
        return block.latents

    def _stage(self, way: Way, rollout: Rollout, sink: SinkPlan, clock: PassClock) -> None:
        """A stage finishes no block: its passes are counted, the hops between them included."""
        job = self.job
        before = way.moved()
        for _ in rollout.blocks(job["warm"] + job["blocks"], sink):
            pass
        ticks = clock.ticks(job["warm"] * STEPS)
        self.times(statistics.mean(ticks), len(ticks), clock.seconds(job["warm"] * STEPS))
        self.account(way, rollout, before, STEPS * (job["warm"] + job["blocks"]))
        self.found["layers"] = len(rollout.dit.stage)
        clock.close()

    def times(self, s_per_cell: float, cells: int, passes: list[float]) -> None:
        """Seconds of a cell, all that lies between passes included; and the spread of the passes themselves."""
        self.found |= {
            "s_per_cell": s_per_cell,
            "cell_p5_s": percentile(passes, 0.05),
            "cell_p95_s": percentile(passes, 0.95),
            "measured_cells": cells,
        }

    def account(self, way: Way, rollout: Rollout, before: dict[str, int], cells: int) -> None:
        """Bytes by the way's own account, per cell."""
        after = way.moved()
        moved = {name: (after[name] - before[name]) / cells for name in after}
        self.found |= {
            "weights_in_per_cell": moved["weights_in"],
            "fetches_per_cell": moved["fetches"],
            "caches_in_per_cell": moved.get("caches_in", 0.0),
            "caches_out_per_cell": moved.get("caches_out", 0.0),
            "hidden_per_cell": moved.get("hidden_in", 0.0) + moved.get("hidden_out", 0.0),
            "caches_device_bytes": rollout.caches.nbytes,
            "hoisted_bytes": rollout.hoisted_bytes,
        }
        self.found |= {f"{name}_bytes": value for name, value in way.held().items()}

    def traced(self, blocks: Iterator[Block]) -> None:
        """Bytes that really crossed, and stalls, over one block that is in no timing."""
        kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            with torch.profiler.profile(activities=kinds) as record:
                began = time.perf_counter()
                self._next(blocks)
                wall = time.perf_counter() - began
            record.export_chrome_trace(str(path))
            trace = Trace.read(path)
        self.found |= {
            "h2d_per_cell": trace.to_device / STEPS,
            "d2h_per_cell": trace.from_device / STEPS,
            "copy_busy": trace.copying_s / wall,
            "compute_busy": trace.computing_s / wall,
            "stall_s_per_cell": (wall - trace.computing_s) / STEPS,
            "kernels_per_cell": trace.kernels / STEPS,
            "gbs": trace.to_device / max(trace.copying_s, 1e-9) / 1e9,
        }
