"""Weights of earlier runs: safetensors files under our own parameter names, or the averages in a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


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
    fill(module, tensors, path)


def load_initial(modules: dict[str, nn.Module], folder: Path) -> None:
    """Start values from an earlier run (`train.init`): its export/ folder, or its run directory, finished or not.

    A run directory gives the running averages of its last checkpoint. Raises ValueError where there is neither, or
    where they are of another model.
    """
    if all((folder / f"{name}.safetensors").is_file() for name in modules):
        for name, module in modules.items():
            load_exported(module, folder / f"{name}.safetensors")
        return
    path = folder / "checkpoints" / "last.pt"
    if not path.is_file():
        files = ", ".join(f"{name}.safetensors" for name in modules)
        raise ValueError(f"train.init={folder} holds neither {files} nor checkpoints/last.pt: name a run directory")
    content = torch.load(path, map_location="cpu", weights_only=True)
    names = [(part, name) for part, weights in content["weights"].items() for name in weights]
    values = content["average"] or [content["weights"][part][name] for part, name in names]
    found: dict[str, dict[str, Tensor]] = {}
    for (part, name), value in zip(names, values, strict=True):
        found.setdefault(part, {})[name] = value
    for name, module in modules.items():
        if name not in found:
            raise ValueError(f"train.init={folder}: {path} has no weights of {name}, but of {', '.join(found)}")
        fill(module, found[name], path)


@torch.no_grad()
def fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Give a module its values. Raises ValueError where names or shapes are another model's."""
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
