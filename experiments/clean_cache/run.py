"""A cache for each step, or one clean cache for all of them?

    python -m experiments.clean_cache.run --out experiments/clean_cache

In LiveAvatar a block at step t attends to earlier blocks as they were at the same step t (timestep-forcing): a cache
for each step. The other way is one cache for all steps that holds earlier blocks when they are done: here that of the
last step, whose noise level is 0.0089, so that no further pass is needed. The same portrait, voice, noise and weights,
both ways in turn; with one cache each block waits for the one before it: one cell at a time and no pipeline.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiments.long_stream.run import long_voice
from experiments.tables import save
from liveavatar.assemble import Run, assemble
from liveavatar.config import compose, make
from liveavatar.metrics.suite import Piece
from liveavatar.models.dit.cache import RingCache, Scratch, StreamCaches
from liveavatar.tracking import stamp

SHOWN = {
    "sync/lip_energy_r": "lips against voice, r",
    "sync/mouth_range": "mouth's range",
    "identity/toon_colours": "face's colours drift, ΔE",
    "drift/colour": "picture drifts, ΔE",
    "drift/sharpness": "sharpness drifts",
    "quality/sharpness": "sharpness",
    "motion/flow": "flow, %",
    "motion/steadiness": "steadiness",
}


class CleanCaches(StreamCaches):
    """One ring that all steps write to and read from: what stays of a block is what its last step wrote."""

    def _rooms(self, like: torch.Tensor, origin: int) -> tuple[list[RingCache], Scratch]:
        return [RingCache(self.shape, like, origin)], Scratch(self.shape, like)

    def ring(self, step: int) -> RingCache:
        return self.rings[0]


KINDS = {"same step": StreamCaches, "clean": CleanCaches}


def stream(run: Run, kind: str, seed: int) -> tuple[dict[str, Any], list[list[float]]]:
    """Metrics of one video, and contrast and sharpness of its pieces."""
    run.session.caches = KINDS[kind]
    meters = make(compose("evaluate", ["video=none", "metrics=toon"]).metrics, "metrics")
    began, prepared, curve = time.process_time(), run.session.prepare(replace(run.request, seed=seed)), []
    for chunk in run.session.chunks(prepared):
        piece = Piece(chunk.pixels().numpy(), chunk.audio, chunk.audio_rate, chunk.start, chunk.fps)
        meters.see(piece)
        curve.append([chunk.start / chunk.fps, float(piece.contrast.mean()), float(piece.sharpness.mean())])
    found = {"cache": kind, "seed": seed, "caches_mb": prepared.rollout.caches.nbytes / 1e6}
    return found | {"process_s": time.process_time() - began - meters.seconds} | meters.values(), curve


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds, with the standard deviation over them."""
    lines = ["| cache | caches, MB | " + " | ".join(SHOWN.values()) + " |", "| --- | ---: |" + " ---: |" * len(SHOWN)]
    for kind in KINDS:
        mine = [row for row in rows if row["cache"] == kind]
        cells = []
        for key in SHOWN:
            values = [row[key] for row in mine if isinstance(row[key], float)]
            if len(values) < 2:
                cells.append("–")
                continue
            cells.append(f"{statistics.mean(values):.3g} ± {statistics.stdev(values):.2g}")
        lines.append(f"| {kind} | {mine[0]['caches_mb']:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(path: Path, curves: dict[str, list[list[list[float]]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, place, title in zip(panels, (1, 2), ("contrast, grey levels", "sharpness"), strict=True):
        for (kind, of), colour in zip(curves.items(), ("#4477aa", "#ee6677"), strict=True):
            for number, curve in enumerate(of):
                points = [(row[0], row[place]) for row in curve]
                panel.plot(*zip(*points, strict=True), color=colour, lw=1.2, label=kind if not number else None)
        panel.set_title(title, fontsize=10, loc="left")
        panel.set_xlabel("seconds of video")
        panel.grid(color="#d9dee5", lw=0.6)
    panels[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for results.csv, table.md, curves.png and stamp.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each video")
    given = parser.parse_args()
    rows, curves = [], {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        voice = long_voice(Path(folder) / "voice.wav", given.seconds)
        words = [f"output.dir={folder}", f"request.audio={voice}", "fabric.threads=1"]
        with assemble(
            compose("infer", [*words, "fabric.accelerator=cpu", "metrics=none", "profile.memory=false"])
        ) as run:
            for seed in range(given.seeds):
                for kind in KINDS:
                    row, curve = stream(run, kind, seed)
                    rows.append(row)
                    curves[kind].append(curve)
    print(table(rows))
    if given.out:
        save(given.out, rows, stamp("cpu", 1, 1), digits=".5g")
        (given.out / "table.md").write_text(table(rows) + "\n")
        draw(given.out / "curves.png", curves)


if __name__ == "__main__":
    main()
