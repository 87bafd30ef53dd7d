"""The denoising lattice: cells (block, step), and the orders in which they may be visited.

A cell needs the same block's previous step complete, and the cache of its own step filled by earlier blocks. Nothing
else: every order that respects this gives the same numbers. A schedule yields rounds; the cells of a round do not
depend on one another and share one pass over the model's units.
"""

from collections.abc import Iterable, Iterator
from itertools import count
from typing import NamedTuple


class Cell(NamedTuple):
    """One forward of one block at one step."""

    block: int
    step: int


Round = tuple[Cell, ...]


def with_next(rounds: Iterable[Round]) -> Iterator[tuple[Round, Round | None]]:
    """Each round with the one after it; None after the last."""
    coming = iter(rounds)
    here = next(coming, None)
    while here is not None:
        after = next(coming, None)
        yield here, after
        here = after


def sequential(first: int, blocks: int | None, steps: int) -> Iterator[Round]:
    """Block after block, step after step: one cell a round, the order of the reference. `blocks` None never ends."""
    numbers = count(first) if blocks is None else range(first, first + blocks)
    for block in numbers:
        for step in range(steps):
            yield (Cell(block, step),)


def wavefront(
    first: int, blocks: int | None, steps: int, in_flight: int, refresh: int | None = None
) -> Iterator[Round]:
    """Rounds of up to `in_flight` independent cells, older blocks before younger ones.

    A cell joins a round when its block's previous step and the previous block's same step lie in earlier rounds: the
    cells of a round then form an antichain, at most `steps` of them. One arrival of a unit's weights serves a whole
    round, so weight traffic falls by the cells in flight, at the price of as many blocks under way at once. Block
    `refresh`, which takes over the first generated latent, waits until block `first` is finished.
    """
    done: dict[int, int] = {}  # steps taken, per block under way
    upcoming, end = first, None if blocks is None else first + blocks
    while done or end is None or upcoming < end:
        if (end is None or upcoming < end) and not (upcoming == refresh and first in done):
            done[upcoming] = 0
        ready = [Cell(block, step) for block, step in sorted(done.items()) if step < done.get(block - 1, steps)]
        chosen = tuple(ready[:in_flight])
        yield chosen
        for block, step in chosen:
            done[block] = step + 1
        if done.get(upcoming) == 0:
            del done[upcoming]  # there was no room for it yet
        elif upcoming in done:
            upcoming += 1
        for block in [block for block, step in done.items() if step == steps]:
            del done[block]
