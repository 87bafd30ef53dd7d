"""python -m liveavatar.memory RUN: draw memory.png from the memory.json of a run directory (or of several)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from liveavatar.memory.figure import draw


def main() -> int:
    """Draw each; exit code 2 where one cannot be drawn."""
    parser = argparse.ArgumentParser(prog="python -m liveavatar.memory", description=__doc__)
    parser.add_argument("run", type=Path, nargs="+", help="a run directory, or a memory.json")
    parser.add_argument("--out", type=Path, help="the picture (one run only); memory.png beside the file if left out")
    given = parser.parse_args()
    if given.out is not None and len(given.run) > 1:
        parser.error("--out names one picture, and several runs were given: leave it out")
    code = 0
    for run in given.run:
        try:
            sys.stdout.write(f"{draw(run, given.out)}\n")
        except ValueError as error:
            sys.stderr.write(f"liveavatar: {error}\n")
            code = 2
    return code


if __name__ == "__main__":
    sys.exit(main())
