"""Files of tensors without their tensors: names, shapes and places first, then bytes one tensor at a time by pread.

Nothing is mapped, so what was read leaves no page behind that counts as resident. Two formats: safetensors, and the zip
that `torch.save` writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from liveavatar.checkpoint.pages import LARGE, fresh
from liveavatar.checkpoint.places import Place, pickled, placed

LONGEST_HEADER = 100_000_000
PIECE = 2**24
"""Bytes of one read: slow disks answer, and an interruption is heard."""
READERS = 2
"""Pieces of a large tensor that are read at once."""
STAGED = 2**22
"""Bytes of one read of numbers that rest as another type: they are still in the processor's cache when converted."""
AHEAD = 2**26
"""Bytes that a disk is asked for before they are read, so that it works while memory is filled."""


class TensorFile:
    """One safetensors or `torch.save` file, opened for reading; `places` says what it holds.

    key: the configuration key that led to it, for messages. Raises ValueError, naming file and key, for one that is
    missing, truncated, of another kind, or a pickle that wants more than tensors; OSError never leaves it.
    """

    def __init__(self, path: Path, key: str = "weights.dir") -> None:
        self._open(path, key)
        head = self._head()
        self.places: Mapping[str, Place] = pickled(self.path, key) if head[:2] == b"PK" else self._safetensors(head)

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
        room = _room(place.span)
        if place.span:
            self.read_into(room.numpy().data, place.offset)
        return room.view(place.dtype).view(place.shape)

    def straight(self, place: Place, dtype: torch.dtype, room: Tensor, start: int) -> bool:
        """Fill `room` (uint8) with a tensor that rests as `dtype`, from its byte `start` on.

        Numbers stored as another type are rounded on the way, a piece at a time. False, and nothing is read, for one
        whose rows do not lie one after another.
        """
        if place.stride is not None:
            return False
        if place.dtype == dtype:
            self.read_into(room.numpy().data, place.offset + start)
            return True
        made, first = room.view(dtype), start // dtype.itemsize
        stage = _room(min(STAGED, place.span))
        given, each = stage.view(place.dtype), place.dtype.itemsize
        begin = place.offset + first * each
        for low, high in self._pieces(begin, made.numel() * each, STAGED):
            self._exactly(stage.numpy().data[: high - low], begin + low)
            made[low // each : high // each].copy_(given[: (high - low) // each])
        return True

    def read_into(self, room: memoryview, offset: int) -> None:
        """Fill `room` with the bytes that begin at `offset`.

        Two pieces of a large room at a time: what takes longest is that the system finds and clears the memory.
        """
        pieces = self._pieces(offset, len(room), PIECE)
        if len(room) <= PIECE:
            for low, high in pieces:
                self._exactly(room[low:high], offset + low)
            return
        with ThreadPoolExecutor(READERS) as readers:
            under_way: deque[Future[None]] = deque()
            for low, high in pieces:
                under_way.append(readers.submit(self._exactly, room[low:high], offset + low))
                if len(under_way) >= 2 * READERS:
                    under_way.popleft().result()
            for piece in under_way:
                piece.result()

    def _pieces(self, offset: int, nbytes: int, size: int) -> Iterator[tuple[int, int]]:
        """Where pieces of up to `size` of these bytes begin and end; the disk is told of them somewhat earlier."""
        told = 0
        for low in range(0, nbytes, size):
            if told < (soon := min(nbytes, low + AHEAD)):
                self._announce(offset + told, soon - told)
                told = soon
            yield low, min(nbytes, low + size)

    def _announce(self, offset: int, nbytes: int) -> None:
        """Let the disk begin with what is read soon, where it matters and the system takes such advice."""
        advise = getattr(os, "posix_fadvise", None)
        if advise is not None and nbytes >= LARGE:
            with contextlib.suppress(OSError):
                advise(self._file, offset, nbytes, os.POSIX_FADV_WILLNEED)

    def _exactly(self, room: memoryview, offset: int) -> None:
        done = 0
        while done < len(room):
            try:
                got = os.preadv(self._file, [room[done:]], offset + done)
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
            places = {name: placed(entry, 8 + length) for name, entry in header.items()}
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


def _room(nbytes: int) -> Tensor:
    return fresh(nbytes) if nbytes >= LARGE else torch.empty(nbytes, dtype=torch.uint8)
