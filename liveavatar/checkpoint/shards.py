"""A component's tensors in one file or several: an index, or all files of a kind, under our names through a key map."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from liveavatar.checkpoint.files import TensorFile
from liveavatar.checkpoint.keymap import KeyMap
from liveavatar.checkpoint.places import Place

SHOWN = 3
"""Names of each kind in a message."""


class Shards:
    """The tensors of one component (a `TensorSource` under our names), in files under other names.

    paths: one file of tensors, or several that share them. index: file of each published name, where there is one.
    Raises ValueError, naming file and key, for files that are missing or broken and for names that the map lacks.
    """

    def __init__(
        self, paths: Sequence[Path], keymap: KeyMap, key: str = "weights.dir", index: Mapping[str, str] | None = None
    ) -> None:
        self.keymap, self.key = keymap, key
        self.files = [TensorFile(path, key) for path in paths]
        published: dict[str, TensorFile] = {}
        for file in self.files:
            for name in file.places:
                if name in published:
                    raise ValueError(f"{key}: {name!r} is in {published[name].path.name} and in {file.path}: keep one")
                published[name] = file
        self._agrees(index, published)
        strange = []
        self._held: dict[str, tuple[TensorFile, str]] = {}
        for name, file in published.items():
            try:
                ours = keymap.to_ours(name)
            except KeyError:
                strange.append(name)
                continue
            if ours in self._held:
                raise ValueError(f"{key}: {name!r} and {self._held[ours][1]!r} are the same tensor: keep one")
            if ours is not None:
                self._held[ours] = file, name
        self._strange = strange

    @property
    def origin(self) -> str:
        return self.files[0].path.name if len(self.files) == 1 else f"{len(self.files)} shards"

    @property
    def where(self) -> str:
        """The file, or the folder of the files."""
        path = self.files[0].path
        return str(path if len(self.files) == 1 else path.parent)

    def expect(self, shapes: Mapping[str, torch.Size]) -> None:
        """Refuse files of another model, before anything is read.

        Raises ValueError with three names each of what is missing, of what is left over, and of what differs in shape.
        """
        missing = [self.keymap.to_published(name) for name in shapes if name not in self._held]
        extra = [*self._strange, *(held for ours, (_, held) in self._held.items() if ours not in shapes)]
        other = [
            f"{held} {list(file.places[held].shape)} for {list(shapes[ours])}"
            for ours, (file, held) in self._held.items()
            if ours in shapes and file.places[held].shape != shapes[ours]
        ]
        if not (missing or extra or other):
            return
        told = [_few("lacks", missing), _few("has no place for", extra), _few("differs in the shape of", other)]
        raise ValueError(
            f"{self.key}: {self.where} is not the {self.keymap.name} of this configuration: it "
            f"{'; it '.join(words for words in told if words)}. Does model=… match the checkpoint?"
        )

    def place(self, name: str) -> Place:
        """Where one of our tensors lies, and how it is stored there."""
        file, held = self._found(name)
        return file.places[held]

    def names(self) -> Iterable[str]:
        return self._held.keys()

    def read(self, name: str, shape: torch.Size) -> Tensor:
        file, held = self._fitting(name, shape)
        return file.read(held)

    def read_rows(self, name: str, shape: torch.Size, start: int, stop: int) -> Tensor:
        file, held = self._fitting(name, shape)
        return file.read_rows(held, start, stop)

    def read_straight(self, name: str, shape: torch.Size, dtype: torch.dtype, room: Tensor, start: int) -> bool:
        file, held = self._fitting(name, shape)
        return file.straight(file.places[held], dtype, room, start)

    def _fitting(self, name: str, shape: torch.Size) -> tuple[TensorFile, str]:
        file, held = self._found(name)
        if file.places[held].shape != shape:
            raise ValueError(
                f"{file.path}: {held!r} has shape {list(file.places[held].shape)}, but the model of this configuration "
                f"wants {list(shape)}: does model=… match the checkpoint?"
            )
        return file, held

    def _found(self, name: str) -> tuple[TensorFile, str]:
        if name not in self._held:
            raise ValueError(
                f"{self.key}: {self.where} holds no tensor {self.keymap.to_published(name)!r}, which the model needs: "
                "is it a checkpoint of this model?"
            )
        return self._held[name]

    def _agrees(self, index: Mapping[str, str] | None, published: Mapping[str, TensorFile]) -> None:
        wrong = [name for name in index or {} if name not in published]
        if wrong and index is not None:
            raise ValueError(
                f"{self.key}: {index[wrong[0]]} should hold {wrong[0]!r} and {len(wrong) - 1} others that its index "
                "lists, and does not: fetch it again"
            )


def _few(verb: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{verb} {', '.join(names[:SHOWN])}{rest}"


def sharded(folder: Path, stem: str, keymap: KeyMap, key: str = "weights.dir") -> Shards:
    """The shards of `<stem>.safetensors.index.json` in a folder, or `<stem>.safetensors` alone.

    Raises ValueError for a folder with neither, and for an index that names a shard that is not there.
    """
    listing, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
    if not listing.is_file():
        if not single.is_file():
            raise ValueError(
                f"{key}: {folder} holds neither {listing.name} nor {single.name}. Fetch them, or name another folder"
            )
        return Shards([single], keymap, key)
    try:
        index = {str(name): str(file) for name, file in json.loads(listing.read_text("utf-8"))["weight_map"].items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{key}: {listing} is not an index of shards ({error}): fetch it again") from error
    names = sorted(set(index.values()))
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{key}: {listing} names files outside its folder, and is refused")
    gone = [name for name in names if not (folder / name).is_file()]
    if gone:
        raise ValueError(
            f"{key}: {len(gone)} of {len(names)} shards are missing from {folder}, the first being {gone[0]}: "
            "fetch them; what is there is kept"
        )
    return Shards([folder / name for name in names], keymap, key, index)
