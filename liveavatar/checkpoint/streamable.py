"""The streamable folder: one slab per unit, as it lies in memory, so that a unit is one run of bytes on the disk.

    index.json          format, model, dtype, origin, and for each slab: file, nbytes, sha256, and where its tensors lie
    dit/blocks.3.slab   parameters at multiples of 256 bytes, zeros between (`checkpoint.slab`)
    text/….slab         the encoders and the VAE, one slab each, in the precision of the encoders
    google/umt5-xxl/    the tokenizer, where the source had one

A slab counts once it is in the index: a conversion that was cut short goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from liveavatar.checkpoint.bundle import split
from liveavatar.checkpoint.files import TensorFile
from liveavatar.checkpoint.listing import digest_of, read_back
from liveavatar.checkpoint.places import DTYPES, Place
from liveavatar.checkpoint.read import TensorSource
from liveavatar.checkpoint.slab import SlabLayout
from liveavatar.ops.quantise import KINDS

INDEX, FORMAT = "index.json", 1
NAMES = {dtype: name for name, dtype in DTYPES.items()}
RESERVE = 2**28
"""Bytes of a disk that a conversion leaves free."""

Told = Callable[[int], None]


@dataclass(frozen=True)
class Slab:
    """One slab to be written: `key` in the index, `prefix` of its tensors in the source."""

    key: str
    prefix: str
    layout: SlabLayout

    @property
    def file(self) -> str:
        return f"{self.key}.slab"


def slabs_of(
    dit: nn.Module | None, others: Mapping[str, nn.Module], dtype: torch.dtype, encoders: torch.dtype
) -> list[Slab]:
    """The slabs of a model: the DiT unit by unit, each other component as a whole."""
    units: Mapping[str, nn.Module] = dit.units() if dit is not None else {}  # type: ignore[operator] - an AvatarDiT
    found = [Slab(f"dit/{name}", f"{name}.", SlabLayout.of(unit, dtype)) for name, unit in units.items()]
    return found + [
        Slab(f"{name}/{name}", f"{name}.", SlabLayout.of(module, encoders)) for name, module in others.items()
    ]


class StreamableFolder:
    """A streamable folder being written. `about` is what the index says of it; another `about` is another folder.

    Raises ValueError for a folder that holds something else, or the slabs of another model or precision.
    """

    def __init__(self, dir: Path, about: Mapping[str, str]) -> None:
        self.dir, self.about = dir, dict(about)
        path = dir / INDEX
        self.slabs: dict[str, Any] = {}
        if path.is_file():
            index = read_index(dir)
            known = index["about"]
            differ = [
                f"{key}: {known.get(key)} there, {value} now" for key, value in about.items() if known.get(key) != value
            ]
            if differ:
                raise ValueError(
                    f"to={dir} holds another conversion ({'; '.join(differ)}): name another folder, or delete it"
                )
            self.slabs = dict(index["slabs"])
        elif dir.is_dir() and any(dir.iterdir()):
            raise ValueError(f"to={dir} is not empty and holds no streamable folder: name another folder")

    def missing(self, slabs: list[Slab]) -> list[Slab]:
        """Those that are not there yet, or not in the size that the index says."""
        return [
            slab
            for slab in slabs
            if slab.key not in self.slabs or _size(self.dir / slab.file) != self.slabs[slab.key]["nbytes"]
        ]

    def check_room(self, slabs: list[Slab]) -> None:
        """Raises ValueError, before anything is written, where the disk lacks room for these slabs."""
        self.dir.mkdir(parents=True, exist_ok=True)
        wanted, free = sum(slab.layout.nbytes for slab in slabs) + RESERVE, shutil.disk_usage(self.dir).free
        if wanted > free:
            raise ValueError(
                f"to={self.dir} needs {wanted / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free: make room, or "
                "name a folder on another disk"
            )
        self._note()  # from now on the folder is known as this conversion's

    def write(self, slab: Slab, source: TensorSource, progress: Told = lambda _: None) -> None:
        """Write one slab tensor by tensor, read it back, and enter it into the index."""
        path = self.dir / slab.file
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".slab.part")
        digest = hashlib.sha256()
        with draft.open("wb") as file:
            for piece in _pieces(slab, source):
                file.write(piece)
                digest.update(piece)
                progress(len(piece))
            file.flush()
            os.fsync(file.fileno())
        read_back(draft, digest.hexdigest())
        draft.replace(path)
        self.slabs[slab.key] = {
            "file": slab.file,
            "nbytes": slab.layout.nbytes,
            "sha256": digest.hexdigest(),
            "tensors": {
                name: {"offset": entry.offset, "shape": list(entry.shape), "dtype": NAMES[entry.dtype]}
                for name, entry in slab.layout.entries.items()
            },
        }
        self._note()

    def _note(self) -> None:
        draft = self.dir / f"{INDEX}.part"
        document = {"format": FORMAT, "about": self.about, "slabs": self.slabs}
        draft.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        draft.replace(self.dir / INDEX)


class Streamable:
    """A finished streamable folder (a `TensorSource`; see `bundle.split` for its names).

    dir: the folder. verify: hash every slab first, which reads all of it once. Raises ValueError, naming the slab,
    for one that is missing, of another size, or damaged, and for a folder that was not converted to its end.
    """

    def __init__(self, dir: str | Path, verify: bool = False) -> None:
        self.dir = Path(dir).expanduser()
        index = read_index(self.dir)
        self.about: Mapping[str, str] = index["about"]
        self._files: dict[str, TensorFile] = {}
        self._places: dict[str, tuple[Path, Place]] = {}
        for key, slab in index["slabs"].items():
            path = self.dir / slab["file"]
            if path.resolve().parent.parent != self.dir.resolve():
                raise ValueError(f"weights.dir: {self.dir / INDEX} names {slab['file']}, outside its folder")
            if _size(path) != slab["nbytes"]:
                raise ValueError(
                    f"weights.dir: {path} has {_size(path)} bytes and should have {slab['nbytes']}: convert again, "
                    "which writes only what is missing"
                )
            if verify and (found := digest_of(path)) != slab["sha256"]:
                raise ValueError(
                    f"weights.dir: {path} is damaged: its SHA-256 is {found} and should be {slab['sha256']}. Delete it "
                    "and convert again, which writes only what is missing"
                )
            component, _, unit = key.partition("/")
            prefix = unit if component == "dit" else component
            for name, entry in slab["tensors"].items():
                place = Place(entry["offset"], torch.Size(entry["shape"]), DTYPES[entry["dtype"]])
                self._places[f"{prefix}.{name}"] = path, place

    @property
    def origin(self) -> str:
        return f"{self.dir.name} ({self.about['origin']})"

    def names(self) -> Iterator[str]:
        """Of all tensors, as a run asks for them."""
        return iter(self._places)

    def place(self, name: str) -> Place:
        return self._places[name][1]

    def expect(self, shapes: Mapping[str, torch.Size]) -> None:
        """Refuse another model's folder before anything is read; components that nobody asks for may be there."""
        asked = {split(name)[0] for name in shapes}
        for name in self._places.keys() - shapes.keys():
            matrix = name.removesuffix(".scale") + ".weight"
            if name.endswith(".scale") and matrix in shapes and "dit" in asked:
                kind = next((kind for kind, dtype in KINDS.items() if dtype == self.place(matrix).dtype), "one byte")
                raise ValueError(
                    f"weights.dir: {self.dir} holds its matrices in {kind}, which cannot go back: run it with "
                    f"precision.weights={kind} and no weights.lora (adapters=[…] puts LoRA files beside them)"
                )
        here = {name: place.shape for name, (_, place) in self._places.items() if split(name)[0] in asked}
        wrong = [
            *(f"{name} is missing" for name in shapes if name not in here),
            *(f"{name} is left over" for name in here if name not in shapes),
            *(f"{n} is {list(s)} and not {list(shapes[n])}" for n, s in here.items() if n in shapes and shapes[n] != s),
        ]
        if wrong:
            raise ValueError(
                f"weights.dir: {self.dir} is not of this model ({len(wrong)} tensors differ: {', '.join(wrong[:3])}): "
                f"it was converted from {self.about['model']}"
            )

    def read(self, name: str, shape: torch.Size) -> Tensor:
        file, place = self.located(name, shape)
        return file.at(place)

    def read_rows(self, name: str, shape: torch.Size, start: int, stop: int) -> Tensor:
        file, place = self.located(name, shape)
        return file.at(place.rows(start, stop))

    def read_straight(self, name: str, shape: torch.Size, dtype: torch.dtype, room: Tensor, start: int) -> bool:
        file, place = self.located(name, shape)
        return file.straight(place, dtype, room, start)

    def located(self, name: str, shape: torch.Size) -> tuple[TensorFile, Place]:
        """The open file of a tensor, and its place there."""
        if name not in self._places:
            raise ValueError(f"weights.dir: {self.dir} holds no tensor {name!r}: is it of this model?")
        path, place = self._places[name]
        if place.shape != shape:
            raise ValueError(
                f"weights.dir: {name} of {self.dir} has shape {list(place.shape)}, but the model of this configuration "
                f"wants {list(shape)}: does model=… match the folder?"
            )
        if (key := str(path)) not in self._files:
            self._files[key] = TensorFile.plain(path)
        return self._files[key], place


def streamable(dir: str | Path, lora: Any = None, verify: bool = False) -> TensorSource:
    """A streamable folder, with LoRA files over its DiT where `lora` names some (as `published`)."""
    from liveavatar.checkpoint.published import with_loras

    return with_loras(Streamable(dir, verify), lora)


def read_index(dir: Path) -> dict[str, Any]:
    """The index of a streamable folder. Raises ValueError where there is none that can be read."""
    path = dir / INDEX
    if not path.is_file():
        raise ValueError(
            f"weights.dir={dir} holds no {INDEX}: is it a streamable folder? python -m liveavatar.convert makes one"
        )
    try:
        index = json.loads(path.read_text("utf-8"))
        if index["format"] != FORMAT:
            raise ValueError(f"it has format {index['format']}, and this version knows {FORMAT}")
        return {"about": dict(index["about"]), "slabs": dict(index["slabs"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"weights.dir: {path} cannot be used ({error}): convert again") from error


def _pieces(slab: Slab, source: TensorSource) -> Iterator[bytes | memoryview]:
    """The bytes of a slab in order, a tensor at a time, zeros between."""
    done = 0
    for name, entry in slab.layout.entries.items():
        yield bytes(entry.offset - done)
        tensor = source.read(slab.prefix + name, entry.shape).to(entry.dtype).contiguous()
        yield tensor.view(-1).view(torch.uint8).numpy().data
        done = entry.offset + entry.nbytes
    yield bytes(slab.layout.nbytes - done)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
