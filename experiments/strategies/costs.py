"""Seconds that each transformer layer and the decoder take, for `strategy.costs` of the pipelines.

Runs a short request as `liveavatar.infer` would, in one process, and times every unit of the DiT where it computes.
Whatever lets the model fit on one device may be asked for, such as +strategy=fsdp_stream.

    python -m experiments.strategies.costs --out costs.json model=tiny request.max_seconds=2
    python -m liveavatar.infer model=tiny +strategy=diagonal_pipeline strategy.costs=costs.json fabric.devices=2
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from liveavatar.assemble import assemble
from liveavatar.config import compose
from liveavatar.models.dit.model import AvatarDiT


class UnitClock:
    """Seconds of each call of a unit for a cell; prefills are left out."""

    def __init__(self, dit: AvatarDiT, device: torch.device) -> None:
        self.device, self.seconds = device, defaultdict[str, list[float]](list)
        self._began = 0.0
        for name, unit in dit.units().items():
            unit.register_forward_pre_hook(self._begin)
            unit.register_forward_hook(lambda _, given, passed, name=name: self._end(name, given))

    def _begin(self, unit: nn.Module, given: Any) -> None:
        self._wait()
        self._began = time.perf_counter()

    def _end(self, name: str, given: Any) -> None:
        self._wait()
        if not given[0].is_sink:
            self.seconds[name].append(time.perf_counter() - self._began)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def layers(self, count: int) -> list[float]:
        """What each layer brings along, in its median call: what stands before and after the blocks counts too."""
        found, layer = [0.0] * count, 0
        for name, seconds in self.seconds.items():
            if name.startswith("blocks."):
                layer = int(name.split(".")[1])
            found[layer] += statistics.median(seconds)
        return found


def measure(overrides: list[str]) -> dict[str, Any]:
    """Costs of the configuration, in seconds: of each layer in a cell, and of decoding a block."""
    with assemble(compose("infer", ["sink=none", *overrides])) as run:
        dit = run.session.parts.dit
        clock = UnitClock(dit, run.strategy.device)
        decode = [chunk.timings["decode"] for chunk in run.chunks()]
        if len(decode) < 2:
            raise SystemExit("one block is too short to measure: write request.max_seconds=2 or more")
        about = {key: value for key, value in run.metrics.items() if key.startswith("run/") or key == "model"}
    return {"layers": clock.layers(dit.num_layers), "decode": statistics.median(decode[1:]), "about": about}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("overrides", nargs="*", help="as for liveavatar.infer")
    given = parser.parse_args()
    found = measure(given.overrides)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    layers, decode = found["layers"], found["decode"]
    print(f"{sum(layers):.4f} s a cell in {len(layers)} layers, {decode:.4f} s of decoding a block")


if __name__ == "__main__":
    main()
