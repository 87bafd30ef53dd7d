"""Weights of a user's file in a network of ours: tensors are read, code is not."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)

WRAPPED = ("state_dict", "model", "model_state_dict", "state")
PREFIXES = ("module.", "__S__.", "model.")


def read_tensors(path: str | Path, key: str) -> dict[str, Tensor]:
    """Tensors by name, of a safetensors file or one that `torch.save` wrote (its old form too).

    Raises ValueError, naming `key`, for a file that is missing, holds something else, or holds code (TorchScript).
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{key}={path} is no file: check the path; a relative one starts at {Path.cwd()}")
    if _is_script(file):
        raise ValueError(
            f"{key}={path} is TorchScript, which is code, and code of a file is never run. Give the same network's "
            "weights as a state dict, by safetensors or torch.save(model.state_dict(), …)."
        )
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(
            f"{key}={path} cannot be read as weights ({first}). Give a state dict or safetensors."
        ) from error
    for name in WRAPPED:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
    found = {str(name): value for name, value in _items(held) if isinstance(value, Tensor)}
    if not found:
        raise ValueError(f"{key}={path} holds no named tensors. Give a state dict or safetensors.")
    return found


def _items(held: Any) -> list[tuple[Any, Any]]:
    return list(held.items()) if isinstance(held, Mapping) else []


def _is_script(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as packed:
        return any(name.endswith("/constants.pkl") or "/code/" in name for name in packed.namelist())


def filled(net: Net, path: str | Path, key: str, optional: tuple[str, ...] = ()) -> Net:
    """`net` with the weights of a file, ready to look: float32, no gradients.

    What the file has besides (a classifier) is left out, `optional` prefixes may be missing in it. Raises ValueError,
    naming `key`, where a tensor is missing or has another shape.
    """
    given = read_tensors(path, key)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in given):
            given = {name.removeprefix(prefix): value for name, value in given.items()}
    wanted = net.state_dict()
    counters = tuple(name for name in wanted if name.endswith("num_batches_tracked"))
    missing = [name for name in wanted if name not in given and name not in counters and not name.startswith(optional)]
    if missing:
        raise ValueError(
            f"{key}={path} lacks {len(missing)} of {len(wanted)} tensors of {type(net).__name__}, first {missing[0]}: "
            "is it another network's file?"
        )
    for name, value in wanted.items():
        if name in given and given[name].shape != value.shape:
            raise ValueError(
                f"{key}={path}: {name} has the shape {tuple(given[name].shape)}, {type(net).__name__} has "
                f"{tuple(value.shape)}: is it another network's file?"
            )
    net.load_state_dict({name: given.get(name, value) for name, value in wanted.items()})
    return net.float().eval().requires_grad_(False)
