"""Main memory, page-locked memory, /dev/shm and disks against what the chosen model and strategy need."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from liveavatar.doctor.finding import FAIL, NOTE, OK, WARN, Finding
from liveavatar.memory.ledger import in_words
from liveavatar.memory.readings import Room
from liveavatar.memory.rest import Rest

LIBRARIES = 1_500_000_000
"""Bytes that Python and its libraries take in each process, with what encoding a request needs for a moment."""

RUN_DISK = 1_000_000_000
"""Bytes that should be free for a film, its latents and its log."""


def check_memory(rest: Rest, ranks: int, room: Room, total: Room, on_cpu: bool) -> list[Finding]:
    """Main memory against the weights at rest and the libraries of each process."""
    needed = rest.host + (rest.device * ranks if on_cpu else 0)
    everything = needed + LIBRARIES * ranks
    said = f"{in_words(room.free)} free of {in_words(total.total)} ({room.bound}); weights {in_words(needed)}"
    disk = "+strategy=fsdp_stream strategy.source=disk precision=bf16, or model=tiny"
    if needed > total.total:
        return [Finding("host", "memory", FAIL, said, disk if on_cpu else "strategy.source=peers, or a larger machine")]
    if everything > room.free:
        return [
            Finding(
                "host",
                "memory",
                WARN,
                f"{said} and {in_words(everything - needed)} of libraries and encoding",
                "end other programs (ps aux --sort=-rss | head), or " + disk,
            )
        ]
    return [Finding("host", "memory", OK, said)]


def check_pinned(rest: Rest, on_cpu: bool) -> list[Finding]:
    """Page-locked memory, which slabs in host memory want beside a GPU."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    told = "unlimited" if limit == resource.RLIM_INFINITY else in_words(limit)
    if on_cpu or rest.host == 0:
        return [Finding("host", "pinned memory", OK, f"limit {told}; nothing here asks for any")]
    if limit != resource.RLIM_INFINITY and limit < rest.host:
        return [
            Finding(
                "host",
                "pinned memory",
                WARN,
                f"limit {told}, and {in_words(rest.host)} rest in host memory: locking them may be refused",
                "ulimit -l unlimited (docker run --ulimit memlock=-1)",
            )
        ]
    return [Finding("host", "pinned memory", OK, f"limit {told}")]


def check_shared(rest: Rest, on_cpu: bool) -> list[Finding]:
    """/dev/shm: slabs that ranks share, and NCCL's own buffers."""
    place = Path("/dev/shm")
    if not place.is_dir():
        state = WARN if rest.shared else OK
        return [Finding("host", "/dev/shm", state, "not there: shared slabs go to the folder for temporary files")]
    free = shutil.disk_usage(place).free
    needed = rest.shared + (0 if on_cpu else 1 << 30)
    said = f"{in_words(free)} free" + (f"; the strategy shares {in_words(rest.shared)}" if rest.shared else "")
    if rest.shared > free:
        mend = "docker run --shm-size=…, or mount -o remount,size=… /dev/shm, or strategy.source=peers"
        return [Finding("host", "/dev/shm", FAIL, said, mend.replace("…", f"{-(-needed // 10**9)}g"))]
    if needed > free:
        return [Finding("host", "/dev/shm", WARN, f"{said}; NCCL wants about 1 GB", "docker run --shm-size=8g")]
    return [Finding("host", "/dev/shm", OK, said)]


def check_disks(config: Mapping[str, Any], rest: Rest) -> list[Finding]:
    """The run directory, and the file that source=disk maps."""
    given = (config.get("output") or {}).get("dir")
    found = [_folder("output.dir", Path(given or "outputs").expanduser(), RUN_DISK, FAIL)]
    if rest.disk:
        spill = (config.get("strategy") or {}).get("spill_dir") or tempfile.gettempdir()
        found.append(_folder("strategy.spill_dir", Path(spill).expanduser(), rest.disk, FAIL))
    return found


def _folder(key: str, path: Path, needed: int, state: str) -> Finding:
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    mend = f"{key}=/a/folder/of/yours"
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Finding("disks", key, state, f"{path} cannot be written to", mend)
    free = shutil.disk_usage(place).free
    said = f"{place}: {in_words(free)} free"
    if free < needed:
        worst = state if key != "output.dir" or free < needed // 100 else WARN
        return Finding("disks", key, worst, f"{said}, {in_words(needed)} wanted", mend)
    return Finding("disks", key, OK, said)


def check_threads(devices: int) -> list[Finding]:
    """Threads against cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if devices > cores:
        return [Finding("host", "cores", WARN, f"{devices} processes on {cores} cores", f"fabric.devices={cores}")]
    omp = os.environ.get("OMP_NUM_THREADS")
    return [Finding("host", "cores", NOTE if omp else OK, f"{cores}" + (f", OMP_NUM_THREADS={omp}" if omp else ""))]
