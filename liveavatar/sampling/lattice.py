"""The denoising lattice: cells (block, step), and the orders in which they may be visited.

A cell needs the same block's previous step complete, and the cache of its own step filled by earlier blocks. Nothing
else: every order that respects this gives the same numbers. A schedule yields rounds; the cells of a round do not
depend on one another and share one pass over the model's units.
"""

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple


class Cell(NamedTuple):
    """One forward of one block at one step."""

    block: int
    step: int


Round = tuple[Cell, ...]


def sequential(first: int, blocks: int | None, steps: int) -> Iterator[Round]:
    """Block after block, step after step: one cell a round, the order of the reference. `blocks` None never ends."""
    numbers = count(first) if blocks is None else range(first, first + blocks)
    for block in numbers:
        for step in range(steps):
            yield (Cell(block, step),)
