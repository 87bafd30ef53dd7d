"""Writing safetensors under published names, a tensor at a time: what `convert format=published` does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from liveavatar.checkpoint.keymap import KeyMap
from liveavatar.checkpoint.read import TensorSource
from liveavatar.checkpoint.streamable import NAMES

Told = Callable[[int], None]


@dataclass(frozen=True)
class Wanted:
    """One tensor to be written: its names here and there, and its shape."""

    name: str
    published: str
    shape: torch.Size


def wanted(shapes: Mapping[str, torch.Size], keymap: KeyMap, prefix: str) -> list[Wanted]:
    """All tensors of a component; `prefix` stands before its names in a source."""
    return [Wanted(prefix + name, keymap.to_published(name), shape) for name, shape in shapes.items()]


def write_safetensors(
    folder: Path,
    stem: str,
    tensors: Sequence[Wanted],
    source: TensorSource,
    dtype: torch.dtype,
    shard_bytes: int,
    progress: Told = lambda _: None,
) -> list[Path]:
    """Shards of at most `shard_bytes` (a larger tensor has one of its own) and their index; one file alone has none.

    A shard that is there in its full size is kept, so that a conversion that was cut short goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups = list(_groups(tensors, dtype.itemsize, shard_bytes))
    count = len(groups)
    names = [
        f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" if count > 1 else f"{stem}.safetensors" for i in range(count)
    ]
    for name, group in zip(names, groups, strict=True):
        _write(folder / name, group, source, dtype, progress)
    if count > 1:
        where = {each.published: name for name, group in zip(names, groups, strict=True) for each in group}
        size = sum(each.shape.numel() for each in tensors) * dtype.itemsize
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return [folder / name for name in names]


def _groups(tensors: Sequence[Wanted], item: int, most: int) -> Iterator[list[Wanted]]:
    group: list[Wanted] = []
    size = 0
    for each in tensors:
        nbytes = each.shape.numel() * item
        if group and size + nbytes > most:
            yield group
            group, size = [], 0
        group.append(each)
        size += nbytes
    if group:
        yield group


def _write(path: Path, group: Sequence[Wanted], source: TensorSource, dtype: torch.dtype, progress: Told) -> None:
    entries, end = {}, 0
    for each in group:
        nbytes = each.shape.numel() * dtype.itemsize
        entries[each.published] = {
            "dtype": NAMES[dtype], "shape": list(each.shape), "data_offsets": [end, end + nbytes],
        }  # fmt: skip
        end += nbytes
    header = json.dumps({"__metadata__": {"format": "pt"}} | entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if path.is_file() and path.stat().st_size == 8 + len(header) + end:
        progress(end)
        return
    draft = path.with_suffix(".safetensors.part")
    with draft.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for each in group:
            tensor = source.read(each.name, each.shape).to(dtype).contiguous()
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)
            progress(tensor.nbytes)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
