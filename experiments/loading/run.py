"""How fast do weights come in, and how much memory does it take? Ours beside the disk itself and `from_pretrained`.

    python -m experiments.loading.run --folder /tmp/loading --out experiments/loading

Writes two checkpoints of random numbers (two full-width blocks and an injector of the 14B DiT; an umT5 of about half a
billion parameters as transformers saves it) and reads each in fresh processes, in shuffled order, until every weight
has been read once (a checksum per tensor). `cold` drops the files from the system's memory first.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from liveavatar.checkpoint.keymap_dit import DIT
from liveavatar.checkpoint.keymap_encoders import TEXT_TRANSFORMERS
from liveavatar.checkpoint.shards import sharded
from liveavatar.checkpoint.slab import SlabLayout, allocate
from liveavatar.config import compose, make
from liveavatar.tracking import stamp

UNITS = ("blocks.0", "blocks.1", "injectors.0")
WIDE = {"vocab_size": 32000, "dim": 2048, "dim_attn": 2048, "dim_ffn": 5120, "num_heads": 32, "num_layers": 10}
CASES = {
    "disk": ("dit", "read() of the same files, 64 MB at a time"),
    "ours": ("dit", "shards to slabs, tensor by tensor"),
    "ours, text": ("text", "shards to a module, tensor by tensor"),
    "transformers": ("text", "UMT5EncoderModel.from_pretrained"),
}
CPU = torch.device("cpu")


class Random:
    """Numbers that do not compress and are soon made."""

    origin = "random"

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(name)), dtype=torch.float32) * 0.02


def dit_units() -> dict[str, nn.Module]:
    with torch.device("meta"):
        dit = make(compose("infer", ["model=s2v_14b"]).model.dit, "model.dit")
    return {name: dit.units()[name] for name in UNITS}


def write_checkpoints(folder: Path) -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    from liveavatar.checkpoint.export import Wanted, write_safetensors

    names = {f"{unit}.{name}": p.shape for unit, part in dit_units().items() for name, p in part.named_parameters()}
    wanted = [Wanted(name, DIT.to_published(name), shape) for name, shape in names.items()]
    write_safetensors(folder / "dit", "model", wanted, Random(), torch.bfloat16, 10**9)
    given = dict(WIDE)
    config = UMT5Config(
        vocab_size=given["vocab_size"], d_model=given["dim"], d_kv=given["dim_attn"] // given["num_heads"],
        d_ff=given["dim_ffn"], num_heads=given["num_heads"], num_layers=given["num_layers"],
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    encoder: Any = UMT5EncoderModel(config)
    encoder.to(torch.bfloat16).save_pretrained(folder / "text", max_shard_size="1GB")


def files(folder: Path, kind: str) -> list[Path]:
    return sorted((folder / kind).glob("*.safetensors"))


def checksum(tensors: list[torch.Tensor]) -> int:
    """A sum over the bits of each tensor: nothing of it can have stayed unread."""
    return sum(int(tensor.view(-1).view(torch.int16).sum(dtype=torch.int64)) for tensor in tensors)


def load(folder: Path, name: str) -> None:
    """One timing, in this process: prints seconds, bytes, and the most that the process held above its start."""
    torch.set_num_threads(1)
    kind = CASES[name][0]
    if name == "transformers":
        from transformers import UMT5EncoderModel
    if name == "ours, text":
        from liveavatar.checkpoint.load import materialise
        from liveavatar.models.text import TextEncoder
    units = dit_units() if name == "ours" else {}
    start, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    if name == "disk":
        room = memoryview(bytearray(2**26))
        for path in files(folder, kind):
            with path.open("rb", buffering=0) as file:
                while file.readinto(room):
                    pass
    elif name == "ours":
        source = sharded(folder / kind, "model", DIT)
        for unit, part in units.items():
            layout = SlabLayout.of(part, torch.bfloat16)
            slab = allocate(layout.nbytes, CPU)
            layout.fill(slab, source, unit)
            checksum([slab])
    elif name == "ours, text":
        with torch.device("meta"):
            encoder = TextEncoder(**WIDE)
        materialise(encoder, sharded(folder / kind, "model", TEXT_TRANSFORMERS), CPU, torch.bfloat16)
        checksum(list(encoder.parameters()))
    else:
        loaded = UMT5EncoderModel.from_pretrained(folder / kind, dtype=torch.bfloat16)
        checksum(list({id(p): p.detach() for p in loaded.parameters()}.values()))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
    print(
        json.dumps(
            {"seconds": seconds, "bytes": sum(p.stat().st_size for p in files(folder, kind)), "peak": peak * 1024}
        )
    )


def forget(folder: Path, kind: str) -> None:
    """Drop files from the system's memory."""
    for path in files(folder, kind):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--folder", type=Path, required=True, help="room for 3 GB, on the disk that is asked about")
    asked.add_argument("--out", type=Path, default=Path(__file__).parent)
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument("--one", help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.one:
        load(given.folder, given.one)
        return
    if not (given.folder / "text").is_dir():
        write_checkpoints(given.folder)
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    rng = random.Random(0)
    for state in ("cold", "warm"):
        order = [name for name in CASES for _ in range(given.repeats)]
        rng.shuffle(order)
        for name in order:
            if state == "cold":
                forget(given.folder, CASES[name][0])
            line = [sys.executable, "-m", "experiments.loading.run", "--folder", str(given.folder), "--one", name]
            done = subprocess.run(line, capture_output=True, text=True, check=True)
            found.setdefault((name, state), []).append(json.loads(done.stdout.splitlines()[-1]))
    write(given.out, found, given.repeats)


def write(out: Path, found: dict[tuple[str, str], list[dict[str, float]]], repeats: int) -> None:
    """The table: medians, rates, and the ratio to the row that it is held against."""
    against = {"ours": "disk", "ours, text": "transformers"}
    rows = []
    for (name, state), timings in sorted(found.items()):
        seconds = statistics.median(t["seconds"] for t in timings)
        other = found.get((against.get(name, ""), state))
        base = statistics.median(t["seconds"] for t in other) if other else None
        rows.append({
            "what": name, "state": state, "gb": round(timings[0]["bytes"] / 1e9, 2), "seconds": round(seconds, 2),
            "gb_per_s": round(timings[0]["bytes"] / 1e9 / seconds, 2),
            "speed_beside": f"{base / seconds:.2f} of {against[name]}" if base else "",
            "peak_gb_above_start": round(statistics.median(t["peak"] for t in timings) / 1e9, 2),
        })  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    about = stamp("cpu", 1, 1) | {"repeats": repeats}
    (out / "hardware.json").write_text(json.dumps(about, indent=1, default=str) + "\n")
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    print("\n".join("| " + " | ".join(line) + " |" for line in lines))


if __name__ == "__main__":
    main()
