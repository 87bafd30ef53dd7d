"""`python -m liveavatar.training.pack`: what the stages exported, as one bundle that a run takes.

python -m liveavatar.training.pack runs/vae/export runs/dit/export --to bundle
python -m liveavatar.infer weights=bundle weights.dir=bundle

With --shares, one for each folder, a component that several folders hold becomes the mean of theirs by these shares
(as arXiv:2203.05482): runs that went on from the same weights are often better together than each.

python -m liveavatar.training.pack runs/first/export runs/second/export --shares 4 6 --to bundle
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from liveavatar.checkpoint.bundle import COMPONENTS, write_bundle

TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def pack(
    exports: Sequence[Path], to: Path, dtype: torch.dtype = torch.bfloat16, shares: Sequence[float] | None = None
) -> list[Path]:
    """Write a bundle of all components that these folders hold, rounded to `dtype`.

    What several folders hold is the last one's, or with `shares`, one for each folder, the weighted mean.

    Raises ValueError for a folder without any component, shares that cannot be, and components that differ in shape.
    """
    if shares is not None and (len(shares) != len(exports) or min(shares) <= 0):
        listed = " ".join(f"{share:g}" for share in shares)
        raise ValueError(f"--shares {listed}: give one above 0 for each of the {len(exports)} folders")
    found: dict[str, list[tuple[Path, float]]] = {}
    for folder, share in zip(exports, shares or [1.0] * len(exports), strict=True):
        here = {name: folder / f"{name}.safetensors" for name in COMPONENTS}
        here = {name: path for name, path in here.items() if path.is_file()}
        if not here:
            raise ValueError(f"{folder} holds none of {', '.join(f'{name}.safetensors' for name in COMPONENTS)}")
        for name, path in here.items():
            found.setdefault(name, []).append((path, share))
    written = []
    for name, files in found.items():
        tensors, about = _mean(files if shares is not None else files[-1:])
        written += write_bundle(to, {name: tensors}, dtype, about)
    return written


def _mean(files: Sequence[tuple[Path, float]]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The mean of files of one component by their shares, in double precision, and what the last says about itself."""
    whole, sums = sum(share for _, share in files), {}
    for path, share in files:
        parts = {key: tensor.double() * (share / whole) for key, tensor in load_file(path).items()}
        if sums and _shapes(parts) != _shapes(sums):
            raise ValueError(f"{path} has other tensors than {files[0][0]}: models of different shapes have no mean")
        sums = {key: sums[key] + part for key, part in parts.items()} if sums else parts
    with safe_open(files[-1][0], framework="pt") as file:
        return sums, file.metadata() or {}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in tensors.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    asked = argparse.ArgumentParser(
        prog="python -m liveavatar.training.pack", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    asked.add_argument("exports", nargs="+", type=Path, metavar="EXPORT", help="export/ folder of a stage")
    asked.add_argument("--to", type=Path, required=True, help="folder of the bundle")
    asked.add_argument("--dtype", choices=TYPES, default="bf16")
    asked.add_argument("--shares", nargs="+", type=float, metavar="SHARE", help="a share of the mean for each folder")
    given = asked.parse_args(arguments)
    try:
        for path in pack(given.exports, given.to, TYPES[given.dtype], given.shares):
            sys.stderr.write(f"{path}: {path.stat().st_size / 1e6:.1f} MB\n")
    except (ValueError, OSError) as error:
        asked.exit(2, f"liveavatar: {error}\n")


if __name__ == "__main__":
    main()
