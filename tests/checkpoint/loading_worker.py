"""A full-size DiT of holes, loaded by rank 0 of 8: prints its shard, and the most that the process held."""

from __future__ import annotations

import json
import struct
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch

from liveavatar.checkpoint.keymap_dit import DIT
from liveavatar.checkpoint.published import DIT_STEM
from liveavatar.checkpoint.read import expect
from liveavatar.checkpoint.shards import sharded
from liveavatar.config import compose, conf_dir, make
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.strategies.rehearsal import _group

RANKS = 8


def write_holes(folder: Path, dit: AvatarDiT, shards: int = 4) -> None:
    """The published shards and their index, headers only: the numbers are holes, which take no room on the disk."""
    names = {DIT.to_published(name): p.shape for name, p in dit.named_parameters()}
    where: dict[str, str] = {}
    for number in range(shards):
        file = f"{DIT_STEM}-{number + 1:05d}-of-{shards:05d}.safetensors"
        held = {name: names[name] for name in sorted(names)[number::shards]}
        write_hole(folder / file, held)
        where |= dict.fromkeys(held, file)
    (folder / f"{DIT_STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def write_hole(path: Path, shapes: Mapping[str, torch.Size]) -> None:
    """One safetensors file of bfloat16 tensors, of which only the header is written."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        nbytes = 2 * shape.numel()
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    header = json.dumps(entries).encode()
    with path.open("wb") as written:
        written.write(struct.pack("<Q", len(header)) + header)
        written.truncate(8 + len(header) + end)


class Watch(threading.Thread):
    """The most anonymous and the most resident bytes of this process, looked at a hundred times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous = self.resident = 0
        self.over = False

    def run(self) -> None:
        while not self.over:
            lines = Path("/proc/self/status").read_text().splitlines()
            held = {
                line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("Rss", "VmRSS"))
            }
            self.anonymous = max(self.anonymous, held["RssAnon"])
            self.resident = max(self.resident, held["VmRSS"])
            time.sleep(0.01)


def main(folder: Path, name: str) -> None:
    torch.set_num_threads(1)
    with torch.device("meta"):
        dit = make(compose("infer", ["model=s2v_14b"]).model.dit, "model.dit").eval()
    if not list(folder.iterdir()):
        write_holes(folder, dit)
    import yaml

    node = yaml.safe_load((Path(conf_dir()) / "strategy" / f"{name}.yaml").read_text())
    strategy = make(node, "strategy")
    dit.to(torch.bfloat16)
    watch = Watch()
    watch.start()
    with _group(strategy, RANKS, 0), nullcontext():
        strategy.arrange(dit, 4, "inline")
        source = sharded(folder, DIT_STEM, DIT)
        expect(source, {key: parameter.shape for key, parameter in dit.named_parameters()})
        began = time.perf_counter()
        strategy.place(dit, source, torch.bfloat16)
        seconds = time.perf_counter() - began
    watch.over = True
    watch.join()
    held = strategy.traffic.held
    print(json.dumps({"shard": held, "anonymous": watch.anonymous, "resident": watch.resident, "seconds": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
