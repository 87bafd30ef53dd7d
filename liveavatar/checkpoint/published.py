"""The published folders as a source of tensors: Wan2.2-S2V-14B with its encoders, and LiveAvatar's LoRA over its DiT.

Nothing is converted: each tensor is found through a key map, read alone, and merged with what lies over it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liveavatar.checkpoint.bundle import COMPONENTS, split
from liveavatar.checkpoint.keymap_dit import DIT
from liveavatar.checkpoint.keymap_encoders import SPEECH, TEXT, TEXT_TRANSFORMERS, VAE, VAE_DIFFUSERS
from liveavatar.checkpoint.listing import check_listing
from liveavatar.checkpoint.lora import LoraWeights
from liveavatar.checkpoint.read import TensorSource
from liveavatar.checkpoint.shards import Shards, sharded

BASE = "Wan2.2-S2V-14B"
LORA = Path("LiveAvatar") / "liveavatar.safetensors"
DIT_STEM = "diffusion_pytorch_model"
SPEECH_FOLDER = "wav2vec2-large-xlsr-53-english"
TEXT_FILE, VAE_FILE = "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"


class Published:
    """All components of the published folder (a `TensorSource`; see `bundle.split` for its names).

    dir: Wan2.2-S2V-14B itself, or the folder that holds it. Text encoder and VAE may also be there as transformers
    (`text_encoder/`) and diffusers (`vae/`) keep them. verify: hash each file against what `convert fetch` noted,
    which reads everything once; sizes are compared anyway. Raises ValueError, naming the file, for what is missing,
    truncated, damaged or unknown. Nothing is read but headers until a tensor is asked for.
    """

    def __init__(self, dir: str | Path, verify: bool = False) -> None:
        outer = Path(dir).expanduser()
        self.dir = outer / BASE if (outer / BASE).is_dir() else outer
        if not self.dir.is_dir():
            raise ValueError(
                f"weights.dir={outer} is no folder. Type python -m liveavatar.convert fetch weights.dir={outer} to "
                "get the published files, or weights=random to go without"
            )
        check_listing(outer, verify)
        makers = {"dit": self._dit, "text": self._text, "speech": self._speech, "vae": self._vae}
        self.components: dict[str, Shards] = {name: make() for name, make in makers.items()}

    @property
    def origin(self) -> str:
        return self.dir.name

    def expect(self, shapes: Mapping[str, torch.Size]) -> None:
        """Refuse another model's files: `shapes` are those of all tensors that will be asked for."""
        for component in COMPONENTS:
            ours = {own: shape for name, shape in shapes.items() for part, own in [split(name)] if part == component}
            if ours:
                self.components[component].expect(ours)

    def read(self, name: str, shape: torch.Size) -> Tensor:
        component, own = split(name)
        return self.components[component].read(own, shape)

    def read_rows(self, name: str, shape: torch.Size, start: int, stop: int) -> Tensor:
        component, own = split(name)
        return self.components[component].read_rows(own, shape, start, stop)

    def read_straight(self, name: str, shape: torch.Size, dtype: torch.dtype, room: Tensor, start: int) -> bool:
        component, own = split(name)
        return self.components[component].read_straight(own, shape, dtype, room, start)

    def _dit(self) -> Shards:
        return sharded(self.dir, DIT_STEM, DIT)

    def _text(self) -> Shards:
        if (self.dir / TEXT_FILE).is_file() or not (self.dir / "text_encoder").is_dir():
            return Shards([self.dir / TEXT_FILE], TEXT)
        return sharded(self.dir / "text_encoder", "model", TEXT_TRANSFORMERS)

    def _vae(self) -> Shards:
        if (self.dir / VAE_FILE).is_file() or not (self.dir / "vae").is_dir():
            return Shards([self.dir / VAE_FILE], VAE)
        return sharded(self.dir / "vae", DIT_STEM, VAE_DIFFUSERS)

    def _speech(self) -> Shards:
        folder = self.dir / SPEECH_FOLDER
        pickled = folder / "pytorch_model.bin"
        if pickled.is_file() and not (folder / "model.safetensors").is_file():
            return Shards([pickled], SPEECH)
        return sharded(folder, "model", SPEECH)


def published(
    dir: str | Path, lora: str | Path | Mapping[str, Any] | Sequence[Any] | None = "auto", verify: bool = False
) -> TensorSource:
    """The published folder with LoRA files over its DiT.

    lora: `auto` takes `LiveAvatar/liveavatar.safetensors` beside or below `dir` where it is; null takes none; else a
    file, or a list of files or of `{path, weight, alpha}`, which are added up.
    Raises ValueError as `Published` and `LoraWeights` do, and for an entry that is none of these.
    """
    source: TensorSource = Published(dir, verify)
    return with_loras(source, _found(Path(dir).expanduser()) if lora == "auto" else lora)


def with_loras(source: TensorSource, lora: str | Path | Mapping[str, Any] | Sequence[Any] | None) -> TensorSource:
    """A source with LoRA files over its DiT, each with its weight: sums are made in float32 and rounded once."""
    if lora is None:
        return source
    for entry in [lora] if isinstance(lora, (str, Path, Mapping)) else lora:
        given: dict[str, Any] = dict(entry) if isinstance(entry, Mapping) else {"path": entry}
        strange = set(given) - {"path", "weight", "alpha"}
        if strange or not isinstance(given.get("path"), (str, Path)):
            raise ValueError(
                f"weights.lora: {entry!r} is neither a file nor {{path: …, weight: …, alpha: …}}. Type, for example, "
                "weights.lora=[{path: a.safetensors, weight: 0.8}]"
            )
        path = Path(given["path"]).expanduser()
        alpha, weight = float(given.get("alpha", 64)), float(given.get("weight", 1))
        source = LoraWeights(source, path, DIT, alpha=alpha, weight=weight)
    return source


def _found(outer: Path) -> Path | None:
    near = [folder / LORA for folder in (outer, outer.parent)]
    return next((path for path in near if path.is_file()), None)
