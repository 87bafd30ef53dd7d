"""Freed memory stays with the process that asked for it, and with nobody else."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys

import pytest

from liveavatar.memory.heap import ASKED, keep_pages

ROUNDS, TENSORS, NUMBERS = 20, 6, 1_000_000

FAULTS = f"""
import ctypes, resource, sys, torch
from liveavatar.memory.heap import keep_pages
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of one size, whatever the system's setting
assert keep_pages() == (sys.argv[1] == "keep")
torch.set_num_threads(1)
def work():
    rooms = [torch.ones({NUMBERS}) for _ in range({TENSORS})]
for _ in range(3):  # the heap finds its size
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(word: str, **settings: str) -> int:
    """Fresh pages taken by `ROUNDS` of work in a process of its own, with `settings` of the C library."""
    plain = {name: value for name, value in os.environ.items() if name not in ASKED}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, word], capture_output=True, text=True, check=True, env=plain | settings
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_pages_are_asked_for_once() -> None:
    """Beside a process that gives all back at once: what glibc does unasked lies between, by the layout of the heap."""
    taken = ROUNDS * TENSORS * NUMBERS * 4 // resource.getpagesize()
    assert _faults("leave", MALLOC_MMAP_THRESHOLD_="131072") > 0.9 * taken
    assert _faults("keep") < 0.01 * taken


@pytest.mark.parametrize("name", ASKED)
def test_who_has_settled_it_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert not keep_pages()


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_pages()
