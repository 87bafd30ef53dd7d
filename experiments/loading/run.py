"""How fast do weights come in, and how much memory does it take? Ours beside the disk itself and `from_pretrained`.

    python -m experiments.loading.run --folder /tmp/loading --out experiments/loading

Writes checkpoints of random numbers (two full-width blocks and an injector of the 14B DiT; an umT5 of about half a
billion parameters under transformers' names, in bfloat16 and in float32, read as bfloat16) and reads each in processes
of their own, in rounds of shuffled order.
`cold` drops the files from the system's memory first. Every process is a fork of one that has imported everything.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from experiments.tables import markdown, save
from liveavatar.checkpoint.export import Wanted, write_safetensors
from liveavatar.checkpoint.keymap_dit import DIT
from liveavatar.checkpoint.keymap_encoders import TEXT_TRANSFORMERS
from liveavatar.checkpoint.load import materialise
from liveavatar.checkpoint.shards import sharded
from liveavatar.checkpoint.slab import SlabLayout, allocate
from liveavatar.config import compose, make
from liveavatar.models.text import TextEncoder
from liveavatar.tracking import stamp

UNITS = ("blocks.0", "blocks.1", "injectors.0")
WIDE = {"vocab_size": 32000, "dim": 2048, "dim_attn": 2048, "dim_ffn": 5120, "num_heads": 32, "num_layers": 10}
CASES = {
    "disk": "dit", "disk, kept": "dit", "ours": "dit", "ours, text": "text", "transformers": "text",
    "ours, text of float32": "text32", "transformers, of float32": "text32",
}  # fmt: skip
AGAINST = {
    "disk, kept": "disk", "ours": "disk", "ours, text": "transformers",
    "ours, text of float32": "transformers, of float32",
}  # fmt: skip
CPU = torch.device("cpu")
PIECE = 2**26


class Repeated:
    """Random numbers, the same few millions over and over: a disk does not notice, and they are soon made."""

    origin = "random"

    def __init__(self) -> None:
        self.some = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.bfloat16)

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        count = shape.numel()
        return self.some.repeat(-(-count // self.some.numel()))[:count].view(shape)


def dit_units() -> dict[str, nn.Module]:
    with torch.device("meta"):
        dit = make(compose("infer", ["model=s2v_14b"]).model.dit, "model.dit")
    return {name: dit.units()[name] for name in UNITS}


def encoder() -> TextEncoder:
    with torch.device("meta"):
        return TextEncoder(**WIDE)


def write_checkpoints(folder: Path) -> None:
    """The checkpoints, in shards of 1 GB with an index, as the published ones are; the text encoder's in two types."""
    dit = {f"{unit}.{name}": p.shape for unit, part in dit_units().items() for name, p in part.named_parameters()}
    text = {name: p.shape for name, p in encoder().named_parameters()}
    for kind, names, keymap, dtype in (
        ("dit", dit, DIT, torch.bfloat16),
        ("text", text, TEXT_TRANSFORMERS, torch.bfloat16),
        ("text32", text, TEXT_TRANSFORMERS, torch.float32),
    ):
        wanted = [Wanted(name, keymap.to_published(name), shape) for name, shape in names.items()]
        write_safetensors(folder / kind, "model", wanted, Repeated(), dtype, 10**9)
    config = UMT5Config(
        vocab_size=WIDE["vocab_size"], d_model=WIDE["dim"], d_kv=WIDE["dim_attn"] // WIDE["num_heads"],
        d_ff=WIDE["dim_ffn"], num_heads=WIDE["num_heads"], num_layers=WIDE["num_layers"],
        feed_forward_proj="gated-gelu", architectures=["UMT5EncoderModel"],
    )  # fmt: skip
    for kind in ("text", "text32"):
        config.save_pretrained(folder / kind)


def files(folder: Path, kind: str) -> list[Path]:
    return sorted((folder / kind).glob("*.safetensors"))


def checksum(tensors: list[torch.Tensor]) -> int:
    """A sum over the bits of each tensor: nothing of it can have stayed unread."""
    return sum(int(tensor.view(-1).view(torch.int64).sum()) for tensor in tensors)


def read_disk(folder: Path) -> None:
    room = memoryview(bytearray(PIECE))
    for path in files(folder, "dit"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(room):
                pass


def keep_disk(folder: Path) -> None:
    """The files as they lie into memory that stays, which is the least that a loader that copies can do."""
    paths = files(folder, "dit")
    room, done = np.empty(sum(path.stat().st_size for path in paths), np.uint8), 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(room[done : done + PIECE].data):
                done += got


def read_ours(folder: Path, units: dict[str, nn.Module]) -> None:
    """Into slabs, as a run holds them: every byte has been copied when `fill` returns."""
    source, slabs = sharded(folder / "dit", "model", DIT), []
    for unit, part in units.items():
        layout = SlabLayout.of(part, torch.bfloat16)
        slabs.append(allocate(layout.nbytes, CPU))
        layout.fill(slabs[-1], source, unit)


def read_text(folder: Path, kind: str) -> int:
    module = encoder()
    materialise(module, sharded(folder / kind, "model", TEXT_TRANSFORMERS), CPU, torch.bfloat16)
    return checksum([p.detach() for p in module.parameters()])


def read_transformers(folder: Path, kind: str) -> int:
    module = UMT5EncoderModel.from_pretrained(folder / kind, dtype=torch.bfloat16)
    return checksum(list({id(p): p.detach() for p in module.parameters()}.values()))


def resident(what: str) -> int:
    """Bytes of this process now (`VmRSS`), or the most since it was asked to forget (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def read(folder: Path, name: str, units: dict[str, nn.Module], answer: Any) -> None:
    """One reading, in a process of its own: seconds, checksum, and the most it held above its start."""
    reads = read_text if name.startswith("ours") else read_transformers
    ways = {"disk": read_disk, "disk, kept": keep_disk, "ours": partial(read_ours, units=units)}
    way = ways.get(name) or partial(reads, kind=CASES[name])
    Path("/proc/self/clear_refs").write_text("5")  # the most begins here
    start, began = resident("VmRSS"), time.perf_counter()
    found = way(folder)
    seconds = time.perf_counter() - began
    answer.put({"seconds": seconds, "peak": resident("VmHWM") - start, "sum": found})


def forget(folder: Path, kind: str) -> None:
    """Drop files from the system's memory."""
    for path in files(folder, kind):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def one(folder: Path, name: str, units: dict[str, nn.Module]) -> dict[str, Any]:
    """A reading in a fork of this process."""
    forks = multiprocessing.get_context("fork")
    answer = forks.SimpleQueue()
    child = forks.Process(target=read, args=(folder, name, units, answer))
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"reading {name} ended with {child.exitcode}")
    return answer.get()


def measure(folder: Path, repeats: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """All readings: a round has every row cold and, right after, warm, in shuffled order, so that rows share luck."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    rng, units = random.Random(0), dit_units()
    for turn in range(repeats):
        for name in rng.sample(list(CASES), len(CASES)):
            forget(folder, CASES[name])
            for state in ("cold", "warm"):
                told = one(folder, name, units)
                found.setdefault((name, state), []).append(told)
                seconds, peak = told["seconds"], told["peak"] / 1e9
                print(f"{turn} {state} {name}: {seconds:.2f} s, {peak:.2f} GB", file=sys.stderr, flush=True)
    sums = {told["sum"] for (name, _), readings in found.items() if CASES[name] != "dit" for told in readings}
    if len(sums) != 1:
        raise SystemExit(f"the text encoders read different numbers: checksums {sums}")
    return found


def table(folder: Path, found: dict[tuple[str, str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians, rates, and the median of the rounds' ratios to the row that each is held against."""
    rows = []
    for (name, state), readings in sorted(found.items()):
        seconds = statistics.median(told["seconds"] for told in readings)
        size = sum(path.stat().st_size for path in files(folder, CASES[name]))
        beside = ""
        if name in AGAINST:
            pairs = zip(found[AGAINST[name], state], readings, strict=True)
            ratios = sorted(other["seconds"] / told["seconds"] for other, told in pairs)
            beside = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) of {AGAINST[name]}"
        rows.append({
            "what": name, "state": state, "gb": round(size / 1e9, 2), "seconds": round(seconds, 2),
            "gb_per_s": round(size / 1e9 / seconds, 2), "speed_beside": beside,
            "peak_gb_above_start": round(statistics.median(told["peak"] for told in readings) / 1e9, 2),
        })  # fmt: skip
    return rows


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--folder", type=Path, required=True, help="room for 6 GB, on the disk that is asked about")
    asked.add_argument("--out", type=Path, default=Path(__file__).parent)
    asked.add_argument("--repeats", type=int, default=5)
    asked.add_argument("--write-only", action="store_true", help="write the checkpoints and measure nothing yet")
    given = asked.parse_args()
    torch.set_num_threads(1)
    if not (given.folder / "text32" / "config.json").is_file():
        write_checkpoints(given.folder)
    if given.write_only:
        return
    rows = table(given.folder, measure(given.folder, given.repeats))
    save(given.out, rows, stamp("cpu", 1, 1) | {"repeats": given.repeats}, about="hardware.json")
    print(markdown(rows, ""))


if __name__ == "__main__":
    main()
