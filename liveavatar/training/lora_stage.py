"""Stage `lora`: low-rank adapters of a frozen DiT, trained by the same task, saved as published LoRA files are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from liveavatar.checkpoint.keymap_dit import DIT
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.training.dit_stage import DitTask
from liveavatar.training.saving import write_whole

TARGETS = re.compile(r".*\.(q|k|v|o|ffn\.0|ffn\.2)")
"""Linears that are adapted: every attention (also of the injectors) and every feed-forward (semantics, 9)."""


@dataclass(frozen=True)
class LoraSettings:
    """The adapters (the `lora` node): W + alpha / rank * B A. `checkpointing` computes each unit again on the way back.

    Raises ValueError, naming the key, for values that cannot work.
    """

    rank: int = 128
    alpha: float = 64.0
    checkpointing: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank={self.rank} must be 1 or more; the released adapters have lora.rank=128")
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha={self.alpha} must be above 0; the released adapters have lora.alpha=64")


class Adapters(nn.Module):
    """The A and B of every target of a DiT, in float32, and the DiT taught to add them.

    They are no part of the DiT: its weights may rest sharded, and the adapters whole on every rank. B starts at zero,
    so that nothing changes at first. Names: module path with dots as `/`, then `A` or `B`.
    """

    def __init__(self, dit: AvatarDiT, settings: LoraSettings, seed: int, device: torch.device) -> None:
        super().__init__()
        self.scale = settings.alpha / settings.rank
        self.targets = [name for name, part in dit.named_modules() if TARGETS.fullmatch(name) and _is_linear(part)]
        generator = torch.Generator().manual_seed(seed)
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name in self.targets:
            layer: Any = dit.get_submodule(name)
            down = torch.randn(settings.rank, layer.in_features, generator=generator) / layer.in_features**0.5
            key = name.replace(".", "/")
            self.down[key] = nn.Parameter(down.to(device))
            self.up[key] = nn.Parameter(torch.zeros(layer.out_features, settings.rank, device=device))
            layer.forward = partial(self._adapted, layer.forward, key)

    def _adapted(self, base: Callable[[Tensor], Tensor], key: str, x: Tensor) -> Tensor:
        out = base(x)
        low = F.linear(x.to(self.down[key].dtype), self.down[key])
        return out + (self.scale * F.linear(low, self.up[key])).to(out.dtype)

    def save(self, path: Path) -> Path:
        """A LoRA file in the published format, which `weights.lora` reads."""
        tensors = {}
        for name in self.targets:
            published, key = DIT.to_published(f"{name}.weight").removesuffix(".weight"), name.replace(".", "/")
            tensors[f"{published}.lora_A.default.weight"] = self.down[key].detach().cpu().contiguous()
            tensors[f"{published}.lora_B.default.weight"] = self.up[key].detach().cpu().contiguous()
        about = {"rank": str(self.down[key].shape[0]), "scale": str(self.scale)}
        write_whole(path, lambda draft: save_file(tensors, draft, about))
        return path


def _is_linear(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear)


class LoraTask(DitTask):
    """The task of stage `dit` with everything frozen but the adapters."""

    def __init__(self, adapters: Adapters, *given: Any, **named: Any) -> None:
        super().__init__(*given, trains=(), **named)
        self.adapters = adapters
        self.modules: Mapping[str, nn.Module] = {"lora": adapters}

    def export(self, folder: Path) -> list[Path]:
        """`lora.safetensors`, in the published format."""
        return [self.adapters.save(folder / "lora.safetensors")]


def average_gradients(parameters: list[nn.Parameter], reduce: Callable[[Tensor], Any], ranks: int) -> None:
    """Give every rank the mean of all ranks' gradients, in one exchange."""
    if ranks == 1:
        return
    with torch.no_grad():
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
        mean = reduce(flat)
        for p, part in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)
