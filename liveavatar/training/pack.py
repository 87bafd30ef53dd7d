"""`python -m liveavatar.training.pack`: what the stages exported, as one bundle that a run takes.

python -m liveavatar.training.pack runs/vae/export runs/dit/export --to bundle
python -m liveavatar.infer weights=bundle weights.dir=bundle
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from liveavatar.checkpoint.bundle import COMPONENTS, write_bundle

TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def pack(exports: Sequence[Path], to: Path, dtype: torch.dtype = torch.bfloat16) -> list[Path]:
    """Write a bundle of all components that these folders hold, later folders over earlier ones, rounded to `dtype`.

    Raises ValueError for a folder without any component.
    """
    found: dict[str, Path] = {}
    for folder in exports:
        here = {name: folder / f"{name}.safetensors" for name in COMPONENTS}
        here = {name: path for name, path in here.items() if path.is_file()}
        if not here:
            raise ValueError(f"{folder} holds none of {', '.join(f'{name}.safetensors' for name in COMPONENTS)}")
        found |= here
    written = []
    for name, path in found.items():
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            about = file.metadata() or {}
        written += write_bundle(to, {name: tensors}, dtype, about)
    return written


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    asked = argparse.ArgumentParser(
        prog="python -m liveavatar.training.pack", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    asked.add_argument("exports", nargs="+", type=Path, metavar="EXPORT", help="export/ folder of a stage")
    asked.add_argument("--to", type=Path, required=True, help="folder of the bundle")
    asked.add_argument("--dtype", choices=TYPES, default="bf16")
    given = asked.parse_args(arguments)
    try:
        for path in pack(given.exports, given.to, TYPES[given.dtype]):
            sys.stderr.write(f"{path}: {path.stat().st_size / 1e6:.1f} MB\n")
    except (ValueError, OSError) as error:
        asked.exit(2, f"liveavatar: {error}\n")


if __name__ == "__main__":
    main()
