"""Ranks that share weights and each compute a request of their own.

Every pass over the units is a pass of all: a unit is gathered when all ranks ask for it. A rank that has nothing to
compute any more goes on gathering until the last one is done, and a pass that needs only some units passes by the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from liveavatar.models.dit.residency import Residency


class Voting:
    """The model's `Residency` where ranks do different work with the same weights.

    Before each pass the ranks vote whether they compute. Those that do never read the result, so that the host does
    not wait for it; those that idle learn from it when all are done. `names` are all units, in the order of a pass.
    """

    def __init__(
        self, within: Residency, names: Sequence[str], device: torch.device, group: dist.ProcessGroup | None = None
    ) -> None:
        self.within, self.names, self.group = within, list(names), group
        self.idle_passes = 0
        self._left: list[str] = []
        self._idle = False
        self._votes = torch.zeros(1, dtype=torch.int32, device=device)
        self._work: Any = None

    def begin(self, names: Sequence[str], then: Sequence[str] | None = None) -> None:
        """A pass is about to start: here over `names`, for the ranks together over all units."""
        self._pass_by()  # what the pass before left out, or an error cut short
        if self._work is not None:
            self._work.wait()
        self._votes.fill_(not self._idle)
        self._work = dist.all_reduce(self._votes, group=self.group, async_op=True)
        if not self._idle:
            self._start()

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        self._pass_by(before=name)
        self._left.pop(0)
        with self.within.hold(name):
            yield

    def linger(self, empty_pass: Callable[[], object]) -> None:
        """Go along with the others' passes until no rank computes any more. `empty_pass` announces one over nothing."""
        self._idle = True
        try:
            empty_pass()
            while self._others():
                self.idle_passes += 1
                self._start()
                empty_pass()
        finally:
            self._idle = False

    def _start(self) -> None:
        self.within.begin(self.names)
        self._left = list(self.names)

    def _others(self) -> bool:
        self._work.wait()
        return int(self._votes.item()) > 0

    def _pass_by(self, before: str | None = None) -> None:
        while self._left and self._left[0] != before:
            with self.within.hold(self._left.pop(0)):
                pass


class UnitGathers:
    """FSDP2's units gathered by name, once for all cells of a pass, instead of at each call of a unit.

    `ahead` units are gathered in advance; with `keep` they stay gathered. Units that are not wrapped belong to the
    root, which FSDP2 gathers by itself.
    """

    def __init__(self, units: Mapping[str, nn.Module], ahead: int, keep: bool) -> None:
        self.units = {name: unit for name, unit in units.items() if isinstance(unit, FSDPModule)}
        self.ahead, self.keep = ahead, keep
        self._order: list[str] = []
        for unit in self.units.values():
            unit.set_modules_to_forward_prefetch([])
            unit.set_reshard_after_forward(False, recurse=False)

    def begin(self, names: Sequence[str], then: Sequence[str] | None = None) -> None:
        self._order = [name for name in names if name in self.units]

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        if name not in self.units:
            yield
            return
        unit, place = self.units[name], self._order.index(name)
        unit.unshard()
        for coming in self._order[place + 1 : place + 1 + self.ahead]:
            self.units[coming].unshard(async_op=True)
        try:
            yield
        finally:
            if not self.keep:
                unit.set_reshard_after_forward(True, recurse=False)  # else it would stay after a pass cut short
                unit.reshard()
                unit.set_reshard_after_forward(False, recurse=False)
