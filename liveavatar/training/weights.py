"""Exported weights: one safetensors file per component, under our own parameter names."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn


@torch.no_grad()
def load_exported(module: nn.Module, path: Path) -> None:
    """Fill a module that exists from a file that `export_module` wrote.

    Raises ValueError where the file is missing, broken, or of another model.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name the export/ folder of a finished stage")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    mine = dict(module.named_parameters())
    if mine.keys() != tensors.keys():
        strange = sorted(mine.keys() ^ tensors.keys())
        raise ValueError(f"{path} is of another model: {strange[0]!r} is in only one of both; does model=… match it?")
    for name, parameter in mine.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(
                f"{path}: {name!r} has shape {list(tensors[name].shape)}, but the model of this configuration wants "
                f"{list(parameter.shape)}: does model=… match it?"
            )
        parameter.copy_(tensors[name])
