"""LoRA files, merged into a checkpoint while it is read, so that no wrapper is left at inference (semantics, 9)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from liveavatar.checkpoint.files import TensorFile
from liveavatar.checkpoint.keymap import KeyMap
from liveavatar.checkpoint.read import TensorSource, expect, read_rows, read_straight
from liveavatar.ops.lora import merge

_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
PREFIXES = ("base_model.model.", "diffusion_model.")


@dataclass
class _Pair:
    down: str | None = None
    up: str | None = None


@dataclass
class _Content:
    pairs: dict[str, _Pair] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)


class LoraWeights:
    """A source of weights with a LoRA on top: weight + alpha / rank * up @ down, in float32.

    Keys are published module names, with or without a `base_model.model.` prefix and an adapter name: the reference
    silently ignores all spellings but one. Whole tensors in the file replace those of the base. Raises ValueError for
    a key that names no tensor of the model, and for half a pair.
    """

    def __init__(
        self, base: TensorSource, path: Path, keymap: KeyMap, alpha: float = 64.0, weight: float = 1.0
    ) -> None:
        self.base, self.path, self.alpha, self.weight = base, Path(path), alpha, weight
        self._file = TensorFile(self.path, "weights.lora")
        self._content = self._sorted(keymap)

    @property
    def origin(self) -> str:
        return f"{self.base.origin} + {self.path.name}"

    @property
    def targets(self) -> list[str]:
        """Our names of the weights that are changed by low-rank pairs."""
        return sorted(self._content.pairs)

    def expect(self, shapes: Mapping[str, torch.Size]) -> None:
        """Refuse what the model lacks: the map knows how names are built, only the model how many layers there are.

        Raises ValueError, naming the file's first such key.
        """
        expect(self.base, shapes)
        ours = {name: pair.down for name, pair in self._content.pairs.items()} | self._content.whole
        strange = [key for name, key in ours.items() if name not in shapes]
        if strange:
            raise ValueError(
                f"weights.lora={self.path} changes {len(ours)} tensors, and the model of this configuration lacks "
                f"{len(strange)} of them, the first being that of {strange[0]!r}: is it a LoRA for this model?"
            )

    def read(self, name: str, shape: torch.Size) -> Tensor:
        if name in self._content.whole:
            whole = self._file.read(self._content.whole[name])
            if whole.shape != shape:
                raise ValueError(
                    f"{self.path}: {self._content.whole[name]!r} has shape {list(whole.shape)}, but the model's is "
                    f"{list(shape)}: is it a LoRA for this model?"
                )
            return whole
        tensor = self.base.read(name, shape)
        if name not in self._content.pairs:
            return tensor
        return merge(tensor, *self._pair(name, shape))

    def pairs(self, shapes: Mapping[str, torch.Size]) -> dict[str, tuple[Tensor, Tensor, float]]:
        """All pairs as (down, up, scale), for matrices of these shapes.

        Raises ValueError for a file that holds whole tensors, or pairs for other matrices.
        """
        strange = [*self._content.whole.values(), *(name for name in self._content.pairs if name not in shapes)]
        if strange:
            raise ValueError(
                f"{self.path} changes {strange[0]!r} and {len(strange) - 1} others that cannot be changed beside the "
                "weights: merge it by weights.lora, if it is a LoRA for this model"
            )
        return {name: self._pair(name, shapes[name]) for name in self._content.pairs}

    def _pair(self, name: str, shape: torch.Size) -> tuple[Tensor, Tensor, float]:
        pair = self._content.pairs[name]
        assert pair.down is not None
        assert pair.up is not None
        down, up = self._file.read(pair.down), self._file.read(pair.up)
        if (up.shape[0], down.shape[-1]) != tuple(shape) or up.shape[-1] != down.shape[0]:
            raise ValueError(
                f"{self.path}: the pair of {name!r} is {list(up.shape)} by {list(down.shape)}, but the model's "
                f"matrix is {list(shape)}: is it a LoRA for this model?"
            )
        return down, up, self.weight * self.alpha / down.shape[0]

    def read_rows(self, name: str, shape: torch.Size, start: int, stop: int) -> Tensor:
        """Rows alone where nothing lies over the base; else out of the whole, so that all cuts have the same bits."""
        if name in self._content.whole or name in self._content.pairs:
            return self.read(name, shape)[start:stop]
        return read_rows(self.base, name, shape, start, stop)

    def read_straight(self, name: str, shape: torch.Size, dtype: torch.dtype, room: Tensor, start: int) -> bool:
        """From the base, where nothing lies over it."""
        if name in self._content.whole or name in self._content.pairs:
            return False
        return read_straight(self.base, name, shape, dtype, room, start)

    def _sorted(self, keymap: KeyMap) -> _Content:
        content = _Content()
        for key in self._file.places:
            bare = key
            for prefix in PREFIXES:
                bare = bare.removeprefix(prefix)
            found = _LORA.fullmatch(bare)
            published = f"{found['module']}.weight" if found else bare
            try:
                ours = keymap.to_ours(published)
            except KeyError as error:
                raise ValueError(
                    f"{self.path}: {key!r} names no tensor of the {keymap.name}: is it a LoRA for this model?"
                ) from error
            if ours is None:
                continue
            if not found:
                content.whole[ours] = key
            elif found["part"] == "A":
                content.pairs.setdefault(ours, _Pair()).down = key
            else:
                content.pairs.setdefault(ours, _Pair()).up = key
        halves = [name for name, pair in content.pairs.items() if pair.down is None or pair.up is None]
        if halves:
            raise ValueError(f"{self.path}: {halves[0]!r} has only one of lora_A and lora_B: the file is not complete")
        return content
