"""What the system says of this process's memory, and how much of it is left. Needs no torch."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

NONE = 1 << 60
"""A limit this large is none."""


class Resident:
    """The resident set of this process, in bytes, for a few microseconds a reading."""

    def __init__(self) -> None:
        try:
            self._file: int | None = os.open("/proc/self/statm", os.O_RDONLY)
        except OSError:
            self._file = None

    def __call__(self) -> int:
        if self._file is None:  # no such file system: the largest so far is all there is
            return host_peak()
        return int(os.pread(self._file, 128, 0).split()[1]) * mmap.PAGESIZE

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def status(key: str) -> int | None:
    """A line of /proc/self/status that is given in kB, as bytes; None where there is no such file or line."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None


def host_peak() -> int:
    """Largest resident set of this process so far, in bytes."""
    peak = status("VmHWM")
    if peak is not None:
        return peak
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


@dataclass(frozen=True)
class Room:
    """Memory that may still be taken, out of how much, and what sets the bound. Bytes."""

    free: int
    total: int
    bound: str


def host_room() -> Room:
    """The tightest of the bounds that are foreseeable: the machine's memory, the control group's, the process's."""
    return min((*_machine(), *_control_group(), *_process()), key=lambda room: room.free, default=Room(NONE, NONE, ""))


def host_total() -> Room:
    """The bound that holds even when all others have let go of theirs: what can never be exceeded."""
    rooms = (*_machine(), *_control_group(), *_process())
    return min(rooms, key=lambda room: room.total, default=Room(NONE, NONE, ""))


def _machine() -> list[Room]:
    try:
        lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        found = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}
    except (OSError, ValueError):
        return []
    if "MemTotal" not in found:
        return []
    swap = found.get("SwapTotal", 0), found.get("SwapFree", 0)
    free = found.get("MemAvailable", found.get("MemFree", 0))
    return [Room(free + swap[1], found["MemTotal"] + swap[0], "the machine's memory")]


def _control_group() -> list[Room]:
    """Limits of this process's control groups and of those above them, versions 2 and 1."""
    found = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, kinds, place = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup") if not kinds else Path("/sys/fs/cgroup/memory")
        names = ("memory.max", "memory.current") if not kinds else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        folder = root / place.lstrip("/")
        for level in (folder, *folder.parents):
            if not level.is_relative_to(root):
                break
            limit, used = (_number(level / name) for name in names)
            if limit is not None and used is not None and limit < NONE:
                free = limit - used + _reclaimable(level / "memory.stat")
                found.append(Room(max(0, free), limit, "the control group's limit (a container or a batch job)"))
    return found


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _reclaimable(path: Path) -> int:
    """Bytes of files kept in memory, which the system gives up before it refuses anything."""
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    return 0


def _process() -> list[Room]:
    found = []
    for kind, key, words in (
        (resource.RLIMIT_AS, "VmSize", "the limit of the address space (ulimit -v)"),
        (resource.RLIMIT_DATA, "VmData", "the limit of the data segment (ulimit -d)"),
    ):
        limit = resource.getrlimit(kind)[0]
        used = status(key)
        if limit != resource.RLIM_INFINITY and used is not None:
            found.append(Room(max(0, limit - used), limit, words))
    return found
