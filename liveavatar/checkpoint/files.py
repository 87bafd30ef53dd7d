"""Files of tensors without their tensors: names, shapes and places first, then bytes one tensor at a time by pread.

Nothing is mapped, so what was read leaves no page behind that counts as resident. Two formats: safetensors, whose
header is JSON, and the zip that `torch.save` writes, whose pickle is read with `weights_only` and no storage behind it.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from liveavatar.checkpoint.pages import PAGE, ask_large_pages

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
LONGEST_HEADER = 100_000_000
LARGE = 2**20
PIECE = 2**26
"""Bytes of one read: slow disks answer, and an interruption is heard."""


@dataclass(frozen=True)
class Place:
    """Where a tensor's numbers lie in its file; `stride` None stands for rows one after another."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype
    stride: tuple[int, ...] | None = None

    @property
    def span(self) -> int:
        """Bytes from the first number to the last."""
        if self.stride is None or 0 in self.shape:
            return math.prod(self.shape) * self.dtype.itemsize
        reach = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (reach + 1) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> Place:
        """The place of some rows of a tensor without strides."""
        each = math.prod(self.shape[1:]) * self.dtype.itemsize
        start, stop = min(start, self.shape[0]), min(stop, self.shape[0])
        return Place(self.offset + start * each, torch.Size((stop - start, *self.shape[1:])), self.dtype)


class TensorFile:
    """One safetensors or `torch.save` file, opened for reading; `places` says what it holds.

    key: the configuration key that led to it, for messages. Raises ValueError, naming file and key, for one that is
    missing, truncated, of another kind, or a pickle that wants more than tensors; OSError never leaves it.
    """

    def __init__(self, path: Path, key: str = "weights.dir") -> None:
        self._open(path, key)
        head = self._head()
        self.places: Mapping[str, Place] = _pickled(self.path, key) if head[:2] == b"PK" else self._safetensors(head)

    @classmethod
    def plain(cls, path: Path, key: str = "weights.dir") -> TensorFile:
        """A file whose tensors somebody else knows of: `places` is empty."""
        file = cls.__new__(cls)
        file._open(path, key)
        file.places = {}
        return file

    def _open(self, path: Path, key: str) -> None:
        self.path, self.key = Path(path), key
        try:
            self._file = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            self.nbytes = os.fstat(self._file).st_size
        except FileNotFoundError as error:
            raise ValueError(f"{key}: {self.path} does not exist: fetch it, or give another path") from error
        except OSError as error:
            raise ValueError(f"{key}: {self.path} cannot be opened ({error.strerror})") from error

    def _head(self) -> bytes:
        try:
            return os.pread(self._file, 8, 0)
        except OSError as error:
            raise ValueError(f"{self.key}: {self.path} cannot be read ({error.strerror}): is it a file?") from error

    def read(self, name: str) -> Tensor:
        """A tensor of the file, in fresh memory."""
        place = self.places[name]
        if place.stride is None:
            return self.at(place)
        flat = self.at(Place(place.offset, torch.Size((place.span // place.dtype.itemsize,)), place.dtype))
        return flat.as_strided(place.shape, place.stride)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor, in fresh memory; all of it is read only where rows do not lie one after another."""
        place = self.places[name]
        if place.stride is not None:
            return self.read(name)[start:stop].clone()
        return self.at(place.rows(start, stop))

    def at(self, place: Place) -> Tensor:
        """What lies at a place of this file, row after row."""
        room = _fresh(place.span)
        if place.span:
            self.read_into(room.numpy().data, place.offset)
        return room.view(place.dtype).view(place.shape)

    def straight(self, place: Place, dtype: torch.dtype, room: Tensor, start: int) -> bool:
        """Fill `room` (uint8) with the bytes of a tensor from `start` on, where they are stored as `dtype` in order."""
        if place.dtype != dtype or place.stride is not None:
            return False
        self.read_into(room.numpy().data, place.offset + start)
        return True

    def read_into(self, room: memoryview, offset: int) -> None:
        """Fill `room` with the bytes that begin at `offset`."""
        done = 0
        while done < len(room):
            try:
                got = os.preadv(self._file, [room[done : done + PIECE]], offset + done)
            except OSError as error:
                raise ValueError(
                    f"{self.key}: reading {self.path} failed after {offset + done} bytes ({error.strerror}): "
                    "is its disk or mount still there?"
                ) from error
            if got == 0:
                raise ValueError(
                    f"{self.key}: {self.path} ended at {offset + done} bytes, though it had {self.nbytes} when it was "
                    "opened: something writes to it"
                )
            done += got

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()

    def _safetensors(self, head: bytes) -> dict[str, Place]:
        (length,) = struct.unpack("<Q", head) if len(head) == 8 else (-1,)
        if not 2 <= length <= LONGEST_HEADER:
            raise ValueError(
                f"{self.key}: {self.path} ({self.nbytes} bytes) is neither a safetensors file nor one that torch.save "
                "wrote: fetch it again"
            )
        if 8 + length > self.nbytes:
            raise ValueError(self._short(8 + length))
        text = bytearray(length)
        self.read_into(memoryview(text), 8)
        try:
            header = json.loads(text)
            header.pop("__metadata__", None)
            places = {name: _placed(entry, 8 + length) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.key}: the header of {self.path} is not that of a safetensors file ({error}): fetch it again"
            ) from error
        wanted = max((place.offset + place.span for place in places.values()), default=8 + length)
        if wanted > self.nbytes:
            raise ValueError(self._short(wanted))
        return places

    def _short(self, wanted: int) -> str:
        return (
            f"{self.key}: {self.path} is truncated: it has {self.nbytes} bytes, and its header speaks of {wanted}: "
            "fetch it again"
        )


def _fresh(nbytes: int) -> Tensor:
    """Room for a tensor that soon goes again: large ones straight from the system, and back to it at once.

    From the heap, they would leave gaps that small things which stay make useless, and the process would grow to
    almost twice what it keeps.
    """
    if nbytes < LARGE:
        return torch.empty(nbytes, dtype=torch.uint8)
    pages = mmap.mmap(-1, nbytes + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON)  # shared pages are never large
    room = torch.frombuffer(pages, dtype=torch.uint8)
    start = -room.data_ptr() % PAGE  # a large page has a place of its own; what lies before it is never touched
    ask_large_pages(room.data_ptr(), room.nbytes)
    return room[start : start + nbytes]


def _placed(entry: Mapping[str, Any], base: int) -> Place:
    begin, end = (int(value) for value in entry["data_offsets"])
    shape = torch.Size(int(size) for size in entry["shape"])
    place = Place(base + begin, shape, DTYPES[entry["dtype"]])
    if begin < 0 or end - begin != place.span:
        raise ValueError(f"a tensor of shape {list(shape)} in {end - begin} bytes")
    return place


def _pickled(path: Path, key: str) -> dict[str, Place]:
    """What a `torch.save` file holds. Only tensors, numbers and the like are unpickled, and no storage is read."""
    try:
        with FakeTensorMode():  # knows of each storage where it begins in the file
            held = torch.load(path, weights_only=True)
    except Exception as error:  # pickle errors of many classes, and torch's own
        text = str(error)
        if "weights_only" in text.lower() or "Unsupported" in text:
            raise ValueError(
                f"{key}: {path} is a pickle that wants to run code, and is refused: convert it to safetensors where "
                "you trust it"
            ) from error
        size = path.stat().st_size
        raise ValueError(
            f"{key}: {path} ({size} bytes) is truncated, or no file that torch.save wrote: fetch it again"
        ) from error
    for wrapper in ("state_dict", "model", "model_state"):
        if isinstance(held, dict) and isinstance(held.get(wrapper), dict):
            held = held[wrapper]
    tensors = {str(name): value for name, value in held.items() if isinstance(value, Tensor)} if held else {}
    return {name: _stored(tensor) for name, tensor in tensors.items()}


def _stored(tensor: Tensor) -> Place:
    begin: Any = tensor.untyped_storage()._checkpoint_offset  # set by torch.load where the file is mapped
    offset = int(begin + tensor.storage_offset() * tensor.dtype.itemsize)
    return Place(offset, tensor.shape, tensor.dtype, None if tensor.is_contiguous() else tensor.stride())
