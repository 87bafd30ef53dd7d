"""What a run holds, phase by phase and unit by unit, while it runs and after it.

Phases: `load` (weights come to life), `encode` (the request is read and encoded), `prefill` (a pass that fills the sink
cache), `steady` (every other pass), `decode` (latents to frames, and what sinks do with them). Three truths are kept
apart on a GPU: `allocated` is what tensors needed, `reserved` what the allocator took for them, `driver` what the card
has given out to everybody. On a CPU `host` is the resident set, and `allocated` comes from following the tensors of a
few passes one by one (`memory.probe`). Which component holds what is told by the components themselves
(`memory.ledger`); activations are what is left of `allocated`.

`memory.json` in the run directory, written by `MemoryProfiler.write` (bytes and seconds throughout):

    format        1
    device, rank  where this was measured
    phases        by name: allocated, reserved, driver, host (peaks), seconds, and the component bytes at its end
    units         by name: allocated (peak while it was entered), above (the same without what rested), host, visits
    components    by name: device and host bytes, the most of the run
    timeline      columns of equal length: seconds, phase, unit, block, host, allocated, reserved, driver (where known),
                  device/<component>, parked/<component>; thinned to `profile.points`, each the highest of its stretch
    stride        readings that one point stands for
    plan          peaks foreseen by phase, and `error` = predicted / measured - 1 by phase and of the whole; or null
    baseline      resident bytes before anything was loaded: interpreter and libraries
    failure       what `memory.failure` says of a run that ran out of memory; or null
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from liveavatar.memory.gauge import Gauge, Reading, gauge_for
from liveavatar.memory.ledger import Holdings, Ledger, in_words
from liveavatar.memory.readings import host_peak
from liveavatar.memory.timeline import Point, Timeline

PHASES = ("load", "encode", "prefill", "steady", "decode")
KINDS = ("allocated", "reserved", "driver", "host")
DECIMALS = 4


@dataclass(frozen=True)
class ProfileSettings:
    """How closely memory is watched (the `profile` node).

    memory: keep memory.json; without it the peaks of the phases are measured all the same, and nothing else is.
    figure: draw memory.png at the end, where matplotlib is installed.
    every: passes from one that is read unit by unit to the next; the first of its kind always is.
    points: the most that the timeline keeps, whatever the length of the stream.
    probe: follow the tensors of a few passes one by one where the device keeps no account (CPU).
    Raises ValueError for values that cannot work.
    """

    memory: bool = True
    figure: bool = True
    every: int = 5
    points: int = 2000
    probe: bool = True

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"profile.every={self.every} must be 1 or more: passes from one reading to the next")
        Timeline(self.points)


@dataclass(frozen=True)
class Prediction:
    """What a planner foresees for this rank: bytes of tensors on the device at the peak of each phase.

    `advice` are settings that would need less, best first, as they are typed.
    """

    peaks: Mapping[str, int]
    advice: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        return max(self.peaks.values(), default=0)


@dataclass
class Where:
    """What a run is at: for messages, and kept as it was when something fails."""

    phase: str = "load"
    unit: str = ""
    cells: tuple[tuple[int, int | None], ...] = ()  # (block, step); no step where all are done

    def __str__(self) -> str:
        at = f"phase {self.phase}"
        if self.cells:
            block, step = self.cells[-1]
            at += f", block {block}" + ("" if step is None else f", step {step}")
        return f"{at}, {self.unit}" if self.unit else at


@dataclass
class Peaks:
    """The most that was read; 0 where nothing was."""

    allocated: int = 0
    reserved: int = 0
    driver: int = 0
    host: int = 0
    above: int = 0
    seconds: float = 0.0
    visits: int = 0
    held: Holdings = field(default_factory=dict)

    def fold(self, reading: Reading, resting: int) -> None:
        self.host = max(self.host, reading.host)
        self.driver = max(self.driver, reading.driver or 0)
        self.reserved = max(self.reserved, reading.peak_reserved or 0)
        if reading.peak_allocated is not None:
            self.allocated = max(self.allocated, reading.peak_allocated)
            self.above = max(self.above, reading.peak_allocated - resting)

    def known(self, *names: str) -> dict[str, int]:
        return {name: getattr(self, name) for name in names if getattr(self, name)}


class MemoryProfiler:
    """Measures one rank of one run. `load` begins when it is made.

    Components report to `ledger`. `phase` brackets a phase; `attend` watches a model while a stream is made, at the
    boundaries of passes and units and nowhere else. `plan` may be set any time before the end.
    """

    def __init__(
        self,
        device: torch.device,
        settings: ProfileSettings | None = None,
        plan: Prediction | None = None,
        rank: int = 0,
    ) -> None:
        self.device, self.settings, self.plan, self.rank = device, settings or ProfileSettings(), plan, rank
        self.ledger, self.where = Ledger(), Where()
        self.gauge: Gauge = gauge_for(device, self.ledger)
        self.timeline = Timeline(self.settings.points)
        self.phases: dict[str, Peaks] = {}
        self.units: dict[str, Peaks] = {}
        self.components: Holdings = {}
        self.failure: dict[str, Any] | None = None
        self._began = self._entered_at = time.perf_counter()
        self._highest = host_peak()
        self.baseline = self.gauge.read().host
        self.enter("load")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Everything inside belongs to that phase; what comes after it too, until another begins."""
        self.enter(name)
        with self.probing(name):
            yield
            self.read(self.where.unit)
        self.where.unit = ""

    def end(self) -> None:
        """Close the phase at hand, and take in what components hold now."""
        self.ledger.refresh()
        self.enter(self.where.phase, again=True)

    def read(self, unit: str = "") -> None:
        """Take a reading: into the phase at hand, the unit named, and the timeline. Starts a new peak."""
        reading = self.gauge.read(driver=not unit)
        held = self.ledger.read()
        resting = sum(device for device, _ in held.values())
        self.phases[self.where.phase].fold(reading, resting)
        for name, (device, host) in held.items():
            had = self.components.get(name, (0, 0))
            self.components[name] = max(had[0], device), max(had[1], host)
        if unit:
            peaks = self.units.setdefault(unit, Peaks())
            peaks.fold(reading, resting)
            peaks.visits += 1
        if self.settings.memory:
            block = self.where.cells[-1][0] if self.where.cells else None
            self.timeline.add(
                Point(
                    time.perf_counter() - self._began, self.where.phase, unit or self.where.unit, block,
                    reading.host, reading.peak_allocated, reading.peak_reserved, reading.driver, held,
                )
            )  # fmt: skip

    def probing(self, key: str, size: int = 1) -> AbstractContextManager[object]:
        """Follows the tensors of what is inside, where nobody else counts them and nothing as large was followed."""
        return self.gauge.following(key, size) if self.settings.probe else ExitStack()

    def enter(self, phase: str, again: bool = False) -> None:
        """Go on in another phase, if it is another."""
        if phase == self.where.phase and phase in self.phases and not again:
            return
        now = time.perf_counter()
        if self.where.phase in self.phases:
            self.read()
            closing = self.phases[self.where.phase]
            closing.seconds += now - self._entered_at
            closing.held = self.ledger.read()
            highest = host_peak()
            if highest > self._highest:  # set within this phase: exact, where readings between are not
                closing.host, self._highest = max(closing.host, highest), highest
        self._entered_at = now
        if not again:  # the end of a run that failed: it still says where
            self.where = Where(phase)
        self.phases.setdefault(phase, Peaks())
        self.gauge.mark()

    @property
    def peak(self) -> int | None:
        """The most tensor bytes of the run; None where they were not followed."""
        return max((peaks.allocated for peaks in self.phases.values()), default=0) or None

    def errors(self) -> dict[str, float]:
        """predicted / measured - 1, by phase and as `all`, where both are known."""
        if self.plan is None:
            return {}
        pairs = {name: (self.plan.peaks.get(name), self.phases[name].allocated) for name in self.phases}
        pairs["all"] = (self.plan.peak, self.peak or 0)
        return {name: round(p / m - 1, DECIMALS) for name, (p, m) in pairs.items() if p and m}

    def values(self) -> dict[str, Any]:
        """Metrics: `memory/<phase>/<kind>`, `memory/run/<kind>` for the whole, `memory/plan_error` with a plan."""
        found: dict[str, Any] = {}
        for phase, peaks in self.phases.items():
            found |= {f"memory/{phase}/{kind}": value for kind, value in peaks.known(*KINDS).items()}
        for kind in KINDS:
            most = max((getattr(peaks, kind) for peaks in self.phases.values()), default=0)
            if most:
                found[f"memory/run/{kind}"] = most
        found["memory/run/host"] = max(host_peak(), found.get("memory/run/host", 0))
        found |= {f"memory/{name}": value for name, value in self.gauge.counters().items()}
        if "all" in (errors := self.errors()):
            found["memory/plan_error"] = errors["all"]
        return found

    def said(self) -> str:
        """The state of things in a few words, for a progress bar."""
        now = self.gauge.glance()
        if now.reserved is None:
            return f"{in_words(now.host)} resident"
        of = f" of {in_words(self.plan.peak)} planned" if self.plan else ""
        return f"{in_words(now.allocated or 0)}{of}, {in_words(now.reserved)} reserved"

    def document(self) -> dict[str, Any]:
        """What memory.json holds."""
        return {
            "format": 1,
            "device": str(self.device),
            "rank": self.rank,
            "phases": {name: _told(self.phases[name]) for name in PHASES if name in self.phases},
            "units": {name: peaks.known("allocated", "above", "host", "visits") for name, peaks in self.units.items()},
            "components": _split(self.components),
            "timeline": self.timeline.table(),
            "stride": self.timeline.stride,
            "plan": self.plan and {"peaks": dict(self.plan.peaks), "error": self.errors()},
            "baseline": self.baseline,
            "failure": self.failure,
        }

    def write(self, directory: Path) -> Path | None:
        """memory.json, replaced as a whole; None where `profile.memory` is off and nothing failed."""
        if not self.settings.memory and self.failure is None:
            return None
        name = "memory.json" if self.rank == 0 else f"memory-rank{self.rank}.json"
        target = directory / name
        draft = target.with_suffix(".json.part")
        draft.write_text(json.dumps(self.document(), separators=(",", ":")) + "\n", encoding="utf-8")
        draft.replace(target)
        return target

    def close(self) -> None:
        self.gauge.close()


def _told(peaks: Peaks) -> dict[str, Any]:
    found: dict[str, Any] = dict(peaks.known(*KINDS))
    return found | {"seconds": round(peaks.seconds, DECIMALS), "components": _split(peaks.held)}


def _split(held: Holdings) -> dict[str, dict[str, int]]:
    return {name: {"device": device, "host": host} for name, (device, host) in held.items()}
