"""A bundle: a folder with one safetensors file per component (`dit`, `text`, `speech`, `vae`), under our own names.

This is how the embedded model ships and what the trainer exports. A bundle may hold some components only: the others
then come from seeded random numbers, and its `origin` says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from liveavatar.checkpoint.read import RandomWeights

COMPONENTS = ("dit", "text", "speech", "vae")

DRAWN_DB = 27.0
"""What ships knows drawn faces: its codec gave 46 of them back at 27.6 to 35.1 dB, and photographs at 20.5 and 25.4."""


def split(name: str) -> tuple[str, str]:
    """Component of a name in a run, and the name within it: those of the DiT are its own, all others are prefixed."""
    first, _, own = name.partition(".")
    return (first, own) if first in COMPONENTS else ("dit", name)


class Bundle:
    """The tensors of a bundle folder (a `TensorSource`; see `split` for its names).

    dir: the folder. seed: of the random numbers for components that the folder lacks. `knows_db`: a portrait that the
    codec gives back below so many decibels is unlike what it was trained on (0: not known).
    Raises ValueError when the folder is missing, empty or holds an unreadable file, or when a file lacks a tensor that
    the model has or holds it in another shape.
    """

    def __init__(self, dir: str | Path, seed: int = 0, knows_db: float = 0.0) -> None:
        self.dir, self.random, self.knows_db = Path(dir).expanduser(), RandomWeights(seed), knows_db
        if not self.dir.is_dir():
            raise ValueError(f"weights.dir={self.dir} is no folder: name one that holds dit.safetensors and the like")
        self._files: dict[str, Any] = {}
        for component in COMPONENTS:
            path = self.dir / f"{component}.safetensors"
            if path.is_file():
                self._files[component] = _opened(path)
        if not self._files:
            files = ", ".join(f"{component}.safetensors" for component in COMPONENTS)
            raise ValueError(f"weights.dir={self.dir} holds none of {files}: is it the folder of a bundle?")
        self._names = {component: frozenset(file.keys()) for component, file in self._files.items()}

    @property
    def origin(self) -> str:
        random = [component for component in COMPONENTS if component not in self._files]
        return self.dir.name + (f" ({', '.join(random)}: random)" if random else "")

    def read(self, name: str, shape: torch.Size) -> Tensor:
        component, own = split(name)
        if component not in self._files:
            return self.random.read(name, shape)
        path = self.dir / f"{component}.safetensors"
        if own not in self._names[component]:
            raise ValueError(f"{path} holds no tensor {own!r}, which the model needs: does model=… match the bundle?")
        tensor = self._files[component].get_tensor(own)
        if tensor.shape != shape:
            raise ValueError(
                f"{path}: {own!r} has shape {list(tensor.shape)}, but the model of this configuration wants "
                f"{list(shape)}: does model=… match the bundle?"
            )
        return tensor


def embedded(model: str, seed: int = 0) -> Bundle | RandomWeights:
    """The weights that ship with the package for a model of that name, or random ones of that seed where none do."""
    folder = Path(__file__).resolve().parents[1] / "weights" / model
    if not any((folder / f"{component}.safetensors").is_file() for component in COMPONENTS):
        return RandomWeights(seed)
    return Bundle(folder, seed, DRAWN_DB)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except Exception as error:  # safetensors raises a class of its own making
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def write_bundle(
    dir: Path, components: Mapping[str, Mapping[str, Tensor]], dtype: torch.dtype, about: Mapping[str, str]
) -> list[Path]:
    """Write components as bundle files, rounded to `dtype`; `about` goes into each file's metadata.

    A file is whole or not there: it is written beside its place and moved. Raises ValueError for an unknown component.
    """
    unknown = set(components) - set(COMPONENTS)
    if unknown:
        raise ValueError(f"a bundle has no component {sorted(unknown)}; it knows {', '.join(COMPONENTS)}")
    dir.mkdir(parents=True, exist_ok=True)
    written = []
    for component, tensors in components.items():
        path, fresh = dir / f"{component}.safetensors", dir / f".{component}.safetensors.new"
        ready = {name: tensor.detach().to("cpu", dtype).contiguous().clone() for name, tensor in tensors.items()}
        try:
            save_file(ready, fresh, dict(about))
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
        written.append(path)
    return written
