"""Memory in large pages: a slab of gigabytes in small ones spends longer in page faults than in being read."""

from __future__ import annotations

import ctypes
import mmap

PAGE = 2 * 2**20
"""Bytes of a large page of x86-64 and of most ARM systems."""


def ask_large_pages(address: int, nbytes: int) -> bool:
    """Ask the system for large pages from an address on, before anything is written there; whether it agreed.

    A wish, not a need: where the system has none (no Linux, or switched off), all stays as it was.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    first, last = -(-address // PAGE) * PAGE, (address + nbytes) // PAGE * PAGE
    if advice is None or last <= first:
        return False
    advise = ctypes.CDLL(None).madvise
    return advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice) == 0
