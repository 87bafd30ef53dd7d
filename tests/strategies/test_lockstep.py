"""Passes in lock-step: every pass brings in every unit once, in order, whatever it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch

from liveavatar.checkpoint.read import RandomWeights
from liveavatar.strategies.lockstep import LockStep
from liveavatar.strategies.single import SingleDevice
from tests.scene import conditioning, make_rollout, meta_dit, sink_state

UNITS = ["embed", "blocks.0", "blocks.1", "head"]


class Log:
    """A residency that notes what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, names: Sequence[str]) -> None:
        assert list(names) == UNITS
        self.said.append("begin")

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        self.said.append(name)
        yield
        self.said.append("let go")


@pytest.mark.parametrize("needed", [[], UNITS, ["embed"], ["head"], ["blocks.0", "head"], ["embed", "blocks.1"]])
def test_every_pass_goes_over_all_units(needed: list[str]) -> None:
    log = Log()
    steps = LockStep(log, UNITS)
    for _ in range(2):
        log.said.clear()
        steps.begin(needed)
        for name in needed:
            with steps.hold(name):
                assert log.said[-1] == name
        assert log.said == ["begin", *(word for name in UNITS for word in (name, "let go"))]
    assert steps.passes == 2


def test_a_model_called_without_states_only_takes_part() -> None:
    model = meta_dit()
    SingleDevice().place(model, RandomWeights(0), torch.float32)
    rollout = make_rollout(model, conditioning())
    log = Log()
    names = list(model.units())
    log.begin = lambda given: log.said.append("begin")  # type: ignore[method-assign]
    model.residency = LockStep(log, names)
    assert model([]) == []
    idle = list(log.said)
    log.said.clear()
    with torch.no_grad():
        model([sink_state(rollout)])  # needs no head and no injectors
    assert log.said == idle == ["begin", *(word for name in names for word in (name, "let go"))]
