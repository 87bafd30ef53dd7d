"""Pictures for the eye: sheets of held-out results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from liveavatar.training.saving import write_whole


def save_grid(pictures: Sequence[Tensor], path: Path, columns: int) -> None:
    """Equal pictures [3, H, W] in [-1, 1] as one PNG, `columns` to a row."""
    if not pictures:
        return
    shown = torch.stack(list(pictures)).float().cpu()
    missing = -len(shown) % columns
    shown = torch.cat((shown, torch.ones(missing, *shown.shape[1:])))
    rows = shown.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    pixels = ((rows.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    write_whole(path, lambda draft: Image.fromarray(pixels).save(draft, format="PNG"))
