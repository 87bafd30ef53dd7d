"""What does one byte a number cost? Error of each kind of unit, and of the picture, on the embedded model.

    python -m experiments.quantised.run --out experiments/quantised

The same request (seed 0, 4 steps) with the matrices in bfloat16, float8 and int8 beside float32: relative error of the
weights (root of the mean of squares), of the final latents, PSNR of the picture, and how well the mouth follows the
voice. A stream is a chaotic thing: latents drift apart from the first rounding on, so the lips are the figure to read.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.embedded.cases import Case, Model, cases
from experiments.embedded.measures import decibels, pearson
from experiments.tables import markdown, save
from liveavatar.config import compose, make
from liveavatar.metrics import toon
from liveavatar.models.dit.cache import StreamCaches
from liveavatar.models.dit.context import Grid
from liveavatar.models.dit.quantised import quantise_linears
from liveavatar.ops.quantise import KINDS, give_back, keep_small, quantise, restore
from liveavatar.tracking import stamp

WAYS: dict[str, list[str]] = {
    "float32": [],
    "bfloat16": ["precision=bf16", "precision.encoders=float32"],
    "fp8": ["precision.weights=fp8"],
    "int8": ["precision.weights=int8"],
    "fp8 cache": ["precision.cache=fp8"],
    "int8 cache": ["precision.cache=int8"],
}


def weight_errors(words: list[str], kind: str) -> dict[str, float]:
    """Relative error of the matrices, by the kind of unit: blocks, injectors, adain; and of the worst matrix."""
    cfg = compose("infer", words)
    source = make(cfg.weights, "weights")
    with torch.device("meta"):
        shapes = quantise_linears(make(cfg.model.dit, "model.dit"), kind)
    wrong: dict[str, list[Tensor]] = {}
    worst = 0.0
    for name, shape in shapes.items():
        weight = source.read(name, shape).float()
        back = restore(*quantise(weight, kind), torch.float32)
        pair = torch.stack(((back - weight).square().sum(), weight.square().sum()))
        wrong.setdefault(name.split(".")[0], []).append(pair)
        worst = max(worst, float((pair[0] / pair[1]).sqrt()))
    sums = {unit: torch.stack(pairs).sum(0) for unit, pairs in wrong.items()}
    return {unit: float((pair[0] / pair[1]).sqrt()) for unit, pair in sums.items()} | {"worst matrix": worst}


def cache_errors(words: list[str], person: Case, kind: str) -> dict[str, float]:
    """Relative error of keys and values: root of (squared error summed / squares summed), the mean of the layers.

    The caches that a stream in float32 leaves are made small here, so that nothing else differs.
    """
    model = Model(words)
    stream = model.run.session.prepare(person.request(person.clip.seed))
    for _ in model.run.session.chunks(stream):
        pass
    caches = stream.rollout.caches
    model.close()
    told: dict[str, float] = {}
    for where, kept in (("ring", caches.rings[-1]), ("sink", caches.sink)):
        for name, held in (("keys", kept.k), ("values", kept.v)):
            payload = torch.zeros(held.shape, dtype=KINDS[kind])
            scale = torch.zeros(*held.shape[:-1], 1)
            keep_small(held, payload, scale)
            back = torch.empty_like(held)
            give_back(back, payload, scale)
            by_layer = (back - held).square().sum((1, 2, 3, 4)) / held.square().sum((1, 2, 3, 4))
            told[f"{where} {name}"] = float(by_layer.mean().sqrt())
            told["worst layer"] = max(told.get("worst layer", 0.0), float(by_layer.max().sqrt()))
    return told


def _cache_bytes(run: Any) -> float:
    """Rings and sink of one stream at rest, in MB."""
    dit, sampler = run.session.parts.dit, run.session.sampler
    like = torch.empty(0, dtype=dit.dtype, device="meta")
    caches = StreamCaches(dit.cache_shape(Grid(16, 16)), sampler.steps, like)
    return round((caches.sink.nbytes + sum(ring.nbytes for ring in caches.rings)) / 1e6, 2)


def row(label: str, words: list[str], people: list[Case], base: list[Any] | None) -> tuple[dict[str, Any], list[Any]]:
    """One way to run: its figures, and its videos."""
    model = Model([*words, *WAYS[label]])
    made = [model(case.request(case.clip.seed)) for case in people]
    held = model.run.strategy.traffic.held
    caches = _cache_bytes(model.run)
    model.close()
    lips = [pearson(toon.mouth(v).opening, c.clip.motion.opening[: len(v)]) for v, c in zip(made, people, strict=True)]
    told: dict[str, Any] = {
        "weights": label,
        "dit_mb": round(held / 1e6, 2),
        "cache_mb": caches,
        "lip_r": round(float(np.mean(lips)), 3),
    }
    if base is not None:
        pairs = zip(made, base, strict=True)
        told["psnr_to_float32"] = round(
            float(np.mean([decibels(a.astype(np.float32), b.astype(np.float32)) for a, b in pairs])), 1
        )
    if label in ("fp8", "int8"):
        told |= {f"error {unit}": round(error, 4) for unit, error in weight_errors(words, label).items()}
    if label.endswith("cache"):
        told |= {f"error {part}": round(error, 4) for part, error in cache_errors(words, people[0], label[:-6]).items()}
    return told, made


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--out", type=Path, default=Path(__file__).parent)
    asked.add_argument("--clips", type=int, default=4)
    asked.add_argument("--seconds", type=float, default=4.0)
    asked.add_argument("--weights", type=Path, help="folder of a bundle; by default what ships")
    given = asked.parse_args()
    words = ["weights=bundle", f"weights.dir={given.weights}"] if given.weights else []
    rows: list[dict[str, Any]] = []
    base: list[Any] | None = None
    with tempfile.TemporaryDirectory() as folder:
        people = cases(Path(folder), given.clips, given.seconds)
        for label in WAYS:
            told, made = row(label, words, people, base)
            base = base or made
            rows.append(told)
    about = stamp("cpu", torch.get_num_threads(), 1) | {"clips": given.clips, "seconds": given.seconds}
    save(given.out, rows, about, about="hardware.json")
    print(markdown(rows, ""))


if __name__ == "__main__":
    main()
