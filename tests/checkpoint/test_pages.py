"""Large pages are asked for where they fit, and nothing depends on getting them."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from liveavatar.checkpoint.pages import LARGE, PAGE, ask_large_pages, fresh
from liveavatar.checkpoint.slab import allocate
from liveavatar.memory.readings import Resident


def test_a_room_without_a_whole_page_is_left_alone() -> None:
    pages = mmap.mmap(-1, 2 * PAGE)
    address = torch.frombuffer(pages, dtype=torch.uint8).data_ptr()
    inside = -(-address // PAGE) * PAGE
    assert not ask_large_pages(inside + 1, PAGE)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no large pages to ask for")
def test_a_slab_asks_for_them() -> None:
    slab = allocate(64 * 2**20, torch.device("cpu"))
    assert not slab.any()
    flags, inside = "", False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and ":" not in first:
            low, high = (int(part, 16) for part in first.split("-"))
            inside = low <= slab.data_ptr() + 32 * 2**20 < high
        elif inside and first == "VmFlags:":
            flags = line
    assert "hg" in flags.split()


def test_without_them_all_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert not ask_large_pages(0, 4 * PAGE)
    assert allocate(1000, torch.device("cpu")).numel() == 1000


def test_fresh_room_is_zero_and_of_the_asked_size() -> None:
    for nbytes in (LARGE, 3 * PAGE + 7):
        room = fresh(nbytes)
        assert room.numel() == room.untyped_storage().nbytes() == nbytes
        assert room.data_ptr() % PAGE == 0
        assert not room.any()


def test_a_large_slab_takes_memory_as_it_is_filled() -> None:
    resident = Resident()
    before = resident()
    slab = allocate(64 * PAGE, torch.device("cpu"))
    assert resident() - before < PAGE
    slab[: 32 * PAGE] = 1
    assert resident() - before < 40 * PAGE
    del slab
    assert resident() - before < PAGE
    resident.close()
