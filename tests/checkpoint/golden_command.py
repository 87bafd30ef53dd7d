"""python -m tests.checkpoint.golden_command CASE …: the command line, with a golden case's noise and sink distances."""

from __future__ import annotations

import sys
from pathlib import Path

import liveavatar.session
from liveavatar.infer import main
from liveavatar.sampling.noise import TableDistance, TableNoise
from tests.goldens.case import Case

if __name__ == "__main__":
    case = Case(Path(sys.argv.pop(1)))
    noise, distance = TableNoise(case.inputs["noise"]), TableDistance(case.info["relative_dist"])
    liveavatar.session.CounterNoise = lambda seed: noise  # type: ignore[assignment,misc]
    liveavatar.session.CounterDistance = lambda seed, *bounds: distance  # type: ignore[assignment,misc]
    main()
