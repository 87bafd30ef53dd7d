"""Memory in large pages: a slab of gigabytes in small ones spends longer in page faults than in being read."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

LARGE = 2**20
"""Bytes from which on room is taken straight from the system."""

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


def fresh(nbytes: int) -> Tensor:
    """Zeroed room (uint8, `LARGE` bytes or more) straight from the system, which gets it back as soon as it is let go.

    It begins with a large page and has exactly `nbytes`. The system clears pages as they are first touched: nobody
    writes zeros over what is read into it next. From the heap, rooms that soon go again would leave gaps which small
    things that stay make useless, and the process would grow to almost twice what it keeps.
    """
    pages = mmap.mmap(-1, nbytes + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON)  # shared pages are never large
    start = -torch.frombuffer(pages, dtype=torch.uint8).data_ptr() % PAGE  # what lies before it is never touched
    room = torch.frombuffer(pages, dtype=torch.uint8, count=nbytes, offset=start)
    ask_large_pages(room.data_ptr(), nbytes)
    return room
