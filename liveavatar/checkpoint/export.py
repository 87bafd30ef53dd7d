"""Writing safetensors under published names, a tensor at a time: what `convert format=published` does."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from liveavatar.checkpoint.keymap import KeyMap
from liveavatar.checkpoint.listing import read_back
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

    A shard that is there in its full size is kept, so that a conversion that was cut short goes on. Each is read back;
    raises ValueError, naming it, for one that is not as it was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    planned = _planned(folder, stem, tensors, dtype, shard_bytes)
    for shard in planned:
        _write(shard, source, dtype, progress)
    if len(planned) > 1:
        where = {each.published: shard.path.name for shard in planned for each in shard.tensors}
        size = sum(each.shape.numel() for each in tensors) * dtype.itemsize
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return [shard.path for shard in planned]


def left_to_write(folder: Path, stem: str, tensors: Sequence[Wanted], dtype: torch.dtype, shard_bytes: int) -> int:
    """Bytes of the shards that `write_safetensors` would write: those that are not there in their full size."""
    shards = _planned(folder, stem, tensors, dtype, shard_bytes)
    return sum(shard.nbytes for shard in shards if not shard.there)


@dataclass(frozen=True)
class _Shard:
    """One file of a conversion: what it begins with, and the tensors that follow."""

    path: Path
    tensors: Sequence[Wanted]
    header: bytes
    nbytes: int

    @property
    def there(self) -> bool:
        return self.path.is_file() and self.path.stat().st_size == self.nbytes


def _planned(folder: Path, stem: str, tensors: Sequence[Wanted], dtype: torch.dtype, shard_bytes: int) -> list[_Shard]:
    groups = list(_groups(tensors, dtype.itemsize, shard_bytes))
    count = len(groups)
    return [
        _shard(folder / f"{stem}{f'-{i + 1:05d}-of-{count:05d}' if count > 1 else ''}.safetensors", group, dtype)
        for i, group in enumerate(groups)
    ]


def _shard(path: Path, group: Sequence[Wanted], dtype: torch.dtype) -> _Shard:
    entries, end = {}, 0
    for each in group:
        nbytes = each.shape.numel() * dtype.itemsize
        entries[each.published] = {
            "dtype": NAMES[dtype], "shape": list(each.shape), "data_offsets": [end, end + nbytes],
        }  # fmt: skip
        end += nbytes
    header = json.dumps({"__metadata__": {"format": "pt"}} | entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return _Shard(path, group, len(header).to_bytes(8, "little") + header, 8 + len(header) + end)


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


def _write(shard: _Shard, source: TensorSource, dtype: torch.dtype, progress: Told) -> None:
    if shard.there:
        progress(shard.nbytes - len(shard.header))
        return
    draft = shard.path.with_suffix(".safetensors.part")
    digest = hashlib.sha256(shard.header)
    with draft.open("wb") as file:
        file.write(shard.header)
        for each in shard.tensors:
            tensor = source.read(each.name, each.shape).to(dtype).contiguous()
            piece = tensor.view(-1).view(torch.uint8).numpy().data
            file.write(piece)
            digest.update(piece)
            progress(tensor.nbytes)
        file.flush()
        os.fsync(file.fileno())
    read_back(draft, digest.hexdigest())
    draft.replace(shard.path)
