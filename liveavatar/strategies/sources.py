"""Where a streamed unit's bytes rest between its uses: in shards on the ranks, or in one host copy per machine."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from liveavatar.checkpoint.read import TensorSource
from liveavatar.checkpoint.slab import SlabLayout, allocate
from liveavatar.strategies.base import Traffic
from liveavatar.strategies.faults import naming
from liveavatar.strategies.mates import Mates
from liveavatar.strategies.ring import Wait


def arrived() -> None:
    """The wait of a copy that was over when it returned, or that is ordered by its stream."""


def _wait_for(name: str, work: dist.Work) -> None:
    with naming(f"gathering unit {name}"):
        work.wait()


class PeerShards:
    """Each of the `mates` holds one equal part of each slab; a unit is gathered from all, straight into its slot."""

    def __init__(
        self,
        layouts: Mapping[str, SlabLayout],
        source: TensorSource,
        device: torch.device,
        traffic: Traffic,
        mates: Mates,
    ) -> None:
        self.traffic, self.group = traffic, mates.group
        self.shards: dict[str, Tensor] = {}
        for name, layout in layouts.items():
            size = layout.nbytes // mates.size
            shard = allocate(size, torch.device("cpu"))
            layout.fill(shard, source, name, start=size * mates.index)
            self.shards[name] = shard if device.type == "cpu" else allocate(size, device).copy_(shard)
        traffic.held += sum(shard.nbytes for shard in self.shards.values())

    def __call__(self, name: str, slot: Tensor) -> Wait:
        shard = self.shards[name]
        with naming(f"gathering unit {name}"):
            work = dist.all_gather_into_tensor(slot, shard, group=self.group, async_op=True)
        self.traffic.received += slot.nbytes - shard.nbytes
        self.traffic.gathered += slot.nbytes - shard.nbytes
        self.traffic.fetches += 1
        return partial(_wait_for, name, work) if work is not None else arrived

    def close(self) -> None:
        self.shards.clear()


class HostSlabs:
    """One exact-size copy of all slabs in this machine's host memory, shared by `mates`; each copies whole units.

    Alone, the memory is private (and pinned beside a GPU). Several ranks of a machine map one file in memory, each
    fills its share, and the file's name is gone before the first unit moves, so nothing is left behind by a crash.
    With a `folder`, the file lies there, on disk: the system keeps in memory what it has room for; nothing is pinned.
    """

    def __init__(
        self,
        layouts: Mapping[str, SlabLayout],
        source: TensorSource,
        device: torch.device,
        traffic: Traffic,
        mates: Mates,
        folder: Path | None = None,
    ) -> None:
        self.traffic = traffic
        total = sum(layout.nbytes for layout in layouts.values())
        pinned = device.type == "cuda" and folder is None
        if mates.size == 1 and folder is None:
            self.room = allocate(total, torch.device("cpu"), pinned=pinned)
        else:
            self.room = _shared_room(total, mates, folder)
        self.slabs: dict[str, Tensor] = {}
        start = 0
        for number, (name, layout) in enumerate(layouts.items()):
            self.slabs[name] = self.room[start : start + layout.nbytes]
            start += layout.nbytes
            if number % mates.size == mates.index:
                layout.fill(self.slabs[name], source, name)
        mates.meet()
        if pinned and mates.size > 1:
            pin(self.room)
        traffic.parked += total

    def __call__(self, name: str, slot: Tensor) -> Wait:
        slot.copy_(self.slabs[name], non_blocking=True)
        self.traffic.host += slot.nbytes
        self.traffic.fetches += 1
        return arrived

    def close(self) -> None:
        self.slabs.clear()


def _shared_room(total: int, mates: Mates, folder: Path | None) -> Tensor:
    """Zeroed bytes that all `mates` see, backed by memory or a disk, and by no file name."""
    if folder is None:
        folder = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    path = folder / mates.tell(f"liveavatar-{os.getpid()}-{os.urandom(4).hex()}")
    if mates.index == 0:
        _reserve(path, total)
    mates.meet()
    if not path.exists():
        raise ValueError(
            f"strategy.source wants {total / 1e9:.1f} GB for this machine's ranks, and {folder} lacks that room: "
            "enlarge it, name another strategy.spill_dir with strategy.source=disk, or write strategy.source=peers"
        )
    room = torch.from_file(str(path), shared=True, size=total, dtype=torch.uint8)
    mates.meet()
    if mates.index == 0:
        path.unlink()
    return room


def _reserve(path: Path, total: int) -> None:
    """A file of that size, or none where there is no room: other ranks may take theirs at the same time."""
    if shutil.disk_usage(path.parent).free < total:
        return
    with path.open("wb") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, total)
            else:
                file.truncate(total)
        except OSError:
            path.unlink()


def pin(room: Tensor) -> None:
    """Page-lock shared memory for fast copies, in pieces: one huge registration fails on some systems."""
    cudart = torch.cuda.cudart()
    assert cudart is not None, "there is nothing to pin for without CUDA"
    piece = 2**30 // mmap.PAGESIZE * mmap.PAGESIZE
    for start in range(0, room.nbytes, piece):
        size = min(piece, room.nbytes - start)
        code = cudart.cudaHostRegister(room.data_ptr() + start, size, 0)
        if int(code) != 0:
            raise RuntimeError(
                f"page-locking {room.nbytes / 1e9:.1f} GB of host memory failed after {start / 1e9:.1f} GB (CUDA error "
                f"{int(code)}): raise the limit of locked memory (ulimit -l), or write strategy.source=peers"
            )
