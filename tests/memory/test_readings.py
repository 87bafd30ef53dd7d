"""What the system says: the resident set follows what is touched, and the tightest bound is found."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np

from liveavatar.memory.readings import Resident, host_peak, host_room, host_total

_LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))
import sys
from liveavatar.memory.readings import host_room, host_total
room, total = host_room(), host_total()
assert "torch" not in sys.modules
print(room.free, room.total, total.total, room.bound)
"""


def test_the_resident_set_follows_what_is_touched() -> None:
    resident, size = Resident(), 64 << 20
    held = mmap.mmap(-1, size)  # fresh pages: an allocator may hand out old ones
    before = resident()
    np.frombuffer(held, dtype=np.uint8)[:] = 1
    after = resident()
    assert 0.9 * size < after - before < 2 * size
    assert host_peak() >= 0.99 * after
    resident.close()
    resident.close()


def test_there_is_room_and_less_than_all() -> None:
    room, total = host_room(), host_total()
    assert 0 < room.free <= room.total
    assert total.total > room.free
    assert room.bound


def test_a_limit_of_the_process_is_the_tightest_bound() -> None:
    root = Path(__file__).resolve().parents[2]
    told = subprocess.run([sys.executable, "-c", _LIMITED], cwd=root, capture_output=True, text=True, check=True)
    free, total, most, *bound = told.stdout.split(maxsplit=3)
    assert int(total) == int(most) == 600 << 20
    assert 0 < int(free) < 600 << 20
    assert "ulimit -v" in bound[0]
