"""Passes in lock-step: ranks that gather from one another must gather the same units, equally often, in one order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from liveavatar.models.dit.residency import Residency


class LockStep:
    """A residency in which every pass brings in every unit, whatever the pass itself needs.

    A pass that needs nothing (the model called without states) only takes part: a rank that has no cell in a tick, or
    no request left, goes on gathering like this, and the others never wait for it. `passes` counts both kinds.
    """

    def __init__(self, within: Residency, units: Sequence[str]) -> None:
        self.within, self.units = within, list(units)
        self.passes = 0
        self._needed: list[str] = []
        self._next = 0

    def begin(self, names: Sequence[str], then: Sequence[str] | None = None) -> None:
        """A pass over `names`; one over nothing is over when this returns. Every pass is followed by one like it."""
        self._needed, self._next = list(names), 0
        self.passes += 1
        self.within.begin(self.units)
        if not self._needed:
            self._pass_by(None)

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        self._pass_by(name)
        with self.within.hold(name):
            yield
        self._next += 1
        if name == self._needed[-1]:
            self._pass_by(None)

    def _pass_by(self, until: str | None) -> None:
        """Take in and let go the units that come before `until`, or all that are left."""
        while self._next < len(self.units) and self.units[self._next] != until:
            with self.within.hold(self.units[self._next]):
                self._next += 1
