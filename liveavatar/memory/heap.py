"""How the C library gives memory back, where tensors come and go on a CPU. Needs no torch."""

from __future__ import annotations

import ctypes
import os
import platform

TRIM, MMAP = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)."""

LARGEST, SPARE = 32 * 2**20, 256 * 2**20
"""Bytes: blocks above the first still go back to the system at once (glibc allows no more), the rest once this much
lies idle at the end of the heap."""

ASKED = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Who sets one of these has settled it."""


def keep_pages() -> bool:
    """Let freed memory stay with this process for the next tensor; returns whether that was done.

    glibc otherwise unmaps it and takes fresh pages, which the system clears one by one: a quarter of the time of a
    small decoder. The process keeps up to `SPARE` bytes more than it uses. Elsewhere than on glibc nothing happens.
    """
    if platform.libc_ver()[0] != "glibc" or any(os.environ.get(name) for name in ASKED):
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(MMAP, LARGEST)) and bool(library.mallopt(TRIM, SPARE))
