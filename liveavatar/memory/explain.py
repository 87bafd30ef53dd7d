"""From an error to its explanation, while what was held can still be read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from liveavatar.memory.advice import fitting, savings
from liveavatar.memory.failure import Failure, OutOfMemory, Saving, asked_for, on_device, shortage
from liveavatar.memory.ledger import Holdings
from liveavatar.memory.profiler import MemoryProfiler
from liveavatar.memory.readings import Room, host_room, host_total
from liveavatar.memory.rest import BYTES, dit_units, impossible, rest_bytes


@contextlib.contextmanager
def explained(profiler: MemoryProfiler, config: Any, directory: Path | None) -> Iterator[None]:
    """Turn a shortage of memory inside into OutOfMemory, whose whole report goes into the run directory.

    `directory` None (a rank that shows nothing) stands for `output.dir`, if one was named.
    """
    try:
        yield
    except Exception as error:
        cause = shortage(error)
        if cause is None or isinstance(error, OutOfMemory):
            raise
        raise _told(profiler, config, directory, cause) from error


def foresee(profiler: MemoryProfiler, config: Any, ranks: int) -> None:
    """Refuse weights that can never lie here before the first of them is read.

    Raises OutOfMemory (through `explained`): a process that takes all main memory is killed without a word.
    """
    plain = _plain(config)
    card = torch.cuda.get_device_properties(profiler.device).total_memory if profiler.device.type == "cuda" else None
    with contextlib.suppress(KeyError, TypeError, ValueError):  # a model of other parts: nothing is foreseen
        rest = rest_bytes(plain, ranks)
        why = impossible(rest, ranks, host_total(), card)
        if why:
            asked = rest.device if card is not None and rest.device > card else rest.host + rest.device * ranks
            raise _Foreseen(why, asked, fitting(plain, ranks, host_total(), card))


class _Foreseen(MemoryError):
    """A shortage that has not happened yet."""

    def __init__(self, message: str, asked: int, advice: tuple[Saving, ...]) -> None:
        super().__init__(message)
        self.asked, self.advice = asked, advice


def _told(profiler: MemoryProfiler, config: Any, directory: Path | None, error: BaseException) -> OutOfMemory:
    at, plain = profiler.where, _plain(config)
    held = _held(profiler)
    asked = error.asked if isinstance(error, _Foreseen) else asked_for(error)
    cuda = profiler.device.type == "cuda" and (on_device(error) or isinstance(error, _Foreseen))
    room = host_total() if isinstance(error, _Foreseen) else _device_room(profiler.device) if cuda else host_room()
    plan = profiler.plan
    foreseen = isinstance(error, _Foreseen)
    failure = Failure(
        phase=at.phase,
        unit=at.unit,
        cells=at.cells,
        device=str(profiler.device) if cuda else "the host",
        rank=profiler.rank,
        asked=asked,
        room=room,
        held=held,
        planned=None if plan is None else (plan.peaks.get(at.phase), plan.peak),
        short=_short(asked, room),
        advice=error.advice if foreseen else _advice(profiler, plain, held, _short(asked, room)),
        foreseen=foreseen,
        said=str(error) or type(error).__name__,
    )
    profiler.failure = failure.report()
    where = None
    folder = directory or _named(plain)
    if folder is not None:
        with contextlib.suppress(OSError):
            where = profiler.write(folder)
    return OutOfMemory(failure.sentence(str(at), None if where is None else str(where)), profiler.failure)


def _advice(profiler: MemoryProfiler, config: dict[str, Any], held: Holdings, short: int | None) -> tuple[Saving, ...]:
    """The plan's own advice first, if there is one."""
    planned = tuple(Saving(setting) for setting in profiler.plan.advice) if profiler.plan else ()
    with contextlib.suppress(KeyError, TypeError, ValueError):
        unit = max(dit_units(config["model"]["dit"]).values()) * BYTES.get(config["precision"]["dit"], 2)
        on_cpu = profiler.device.type != "cuda"
        return planned + savings(config, held, profiler.where.phase, on_cpu, short, unit)
    return planned


def _short(asked: int | None, room: Room) -> int | None:
    """Bytes by which it was too little; at least one, where room has come free since. None where that is unknown."""
    return None if asked is None else max(1, asked - room.free)


def _held(profiler: MemoryProfiler) -> Holdings:
    """What components report, and what is left of what the device or the process holds."""
    profiler.ledger.refresh()
    held, now = profiler.ledger.read(), profiler.gauge.glance()
    device, host = (sum(sizes[side] for sizes in held.values()) for side in (0, 1))
    if now.allocated is not None:
        held["activations"] = (max(0, now.allocated - device), 0)
        return held
    held["process"] = (0, profiler.baseline)
    held["other"] = (0, max(0, now.host - profiler.baseline - device - host))
    return held


def _device_room(device: torch.device) -> Room:
    """What the card could still give: its free memory, and what the allocator keeps in reserve."""
    free, total = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Room(free + kept, total, "the card")


def _named(config: dict[str, Any]) -> Path | None:
    named = config.get("output", {}).get("dir")
    return Path(named).expanduser() if named and Path(named).expanduser().is_dir() else None


def _plain(config: Any) -> dict[str, Any]:
    """Plain values; none where a reference leads nowhere: an explanation never hides the failure."""
    try:
        found = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException:
        return {}
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}
