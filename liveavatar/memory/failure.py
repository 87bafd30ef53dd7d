"""Out of memory, explained: where, what was held, what was asked, what would fit. Needs no torch.

The report (`failure` in memory.json):

    where       phase, unit, cells ((block, step) of each state under way)
    device      which ran out: the run's device, or `host`
    asked       bytes that were asked for; null where the error does not say
    free, total bytes that were left, out of how many; bound: what sets that limit
    short       bytes that were missing; null where nobody knows
    held        by component: device and host bytes
    planned     bytes foreseen by the plan for this phase and at its peak; null without a plan
    advice      settings that would need less, best first, with the bytes they save where they are known
    said        the error's own words
    foreseen    whether the run was refused before anything was loaded
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from liveavatar.memory.ledger import WORDS, Holdings, in_words
from liveavatar.memory.readings import Room

CPU_WORDS = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "std::bad_alloc")
CPU_WORDS += ("Cannot allocate memory", "unable to mmap", "could not create a memory object", "Unable to allocate")
CUDA_WORDS = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "Cuda failure 2 ")
CUDA_WORDS += ("CUDA driver error: out of memory",)
ENOMEM = 12

_SIZES = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 1e3, "MB": 1e6, "GB": 1e9}
_ASKED = re.compile(r"(?:[Tt]ried to allocate|Unable to allocate|unable to mmap) ([\d.]+) ([KMGTk]?i?B|bytes)")
MOST = 5
"""Components that a message names."""


class OutOfMemory(RuntimeError):
    """A run needed more memory than there was; the message is the explanation, `report` the whole of it."""

    tells = True
    """Each rank has its own to tell."""

    def __init__(self, message: str, report: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class Saving:
    """A setting that would need less: as it is typed, and the bytes it saves, as far as they are known."""

    setting: str
    saves: int | None = None

    def __str__(self) -> str:
        return self.setting + (f" (saves about {in_words(self.saves)})" if self.saves else "")


def shortage(error: BaseException) -> BaseException | None:
    """The error, or the one that caused it, that says that memory ran out; None where none does."""
    return next((found for found in _chain(error) if _is_shortage(found)), None)


def on_device(error: BaseException) -> bool:
    """Whether it was an accelerator's memory that ran out."""
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in CUDA_WORDS)


def asked_for(error: BaseException) -> int | None:
    """Bytes that were asked for, where the error says so."""
    found = _ASKED.search(str(error))
    return None if found is None else int(float(found[1]) * _SIZES[found[2]])


def _is_shortage(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CPU_WORDS + CUDA_WORDS)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__


@dataclass(frozen=True)
class Failure:
    """What is known of a shortage; see the module's text."""

    phase: str
    unit: str
    cells: tuple[tuple[int, int | None], ...]
    device: str
    rank: int
    asked: int | None
    room: Room
    short: int | None
    held: Holdings
    planned: tuple[int | None, int] | None
    advice: tuple[Saving, ...]
    said: str
    foreseen: bool = False

    def report(self) -> dict[str, Any]:
        return {
            "where": {"phase": self.phase, "unit": self.unit, "cells": [list(cell) for cell in self.cells]},
            "device": self.device,
            "asked": self.asked,
            "free": self.room.free,
            "total": self.room.total,
            "bound": self.room.bound,
            "short": self.short,
            "held": {name: {"device": device, "host": host} for name, (device, host) in self.held.items()},
            "planned": None if self.planned is None else {"phase": self.planned[0], "peak": self.planned[1]},
            "advice": [asdict(saving) for saving in self.advice],
            "said": self.said,
            "foreseen": self.foreseen,
        }

    def _refusal(self, report: str | None) -> str:
        settings = " or ".join(str(saving) for saving in self.advice)
        what = f"What would lie here: {settings}." if settings else "No strategy makes room for this model here."
        told = f" The whole report is in {report}." if report else ""
        return f"there is not enough memory to begin: {self.said}; nothing was loaded. {what}{told}"

    def sentence(self, where: str, report: str | None) -> str:
        """One short paragraph."""
        if self.foreseen:
            return self._refusal(report)
        rank = f"rank {self.rank}: " if self.rank else ""
        asked = f"{in_words(self.asked)} asked" if self.asked is not None else "an unknown amount asked"
        held = sorted(self.held.items(), key=lambda item: -sum(item[1]))
        words = WORDS | ({"other": "being loaded"} if self.phase == "load" else {})
        told = [f"{words.get(name, name)} {in_words(sum(sizes))}" for name, sizes in held if sum(sizes)]
        more = f" and {in_words(sum(sum(sizes) for _, sizes in held[MOST:]))} of others" if len(told) > MOST else ""
        parts = ", ".join(told[:MOST]) + more
        lines = [
            f"{rank}out of memory on {self.device} in {where}: {asked}, {in_words(self.room.free)} free of "
            f"{in_words(self.room.total)} ({self.room.bound}).",
            f"Held: {parts or 'nothing yet'}.",
        ]
        if self.planned is not None:
            phase, peak = self.planned
            here = f"{in_words(phase)} here and " if phase is not None else ""
            lines.append(f"The plan foresaw {here}{in_words(peak)} at its peak.")
        if self.advice:
            enough = self.short is None or any((saving.saves or self.short) >= self.short for saving in self.advice[:1])
            lead = "To fit, write " if enough else "No one setting saves that much; most do "
            lines.append(lead + " or ".join(str(saving) for saving in self.advice[:2]) + ".")
        if self.phase not in ("load", "encode"):
            lines.append("The blocks finished so far are in the file.")
        if report:
            lines.append(f"The whole report is in {report}.")
        return " ".join(lines)
