"""Dividing a row of costs into consecutive parts, as evenly as can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise


def split(costs: Sequence[float], parts: int) -> list[range]:
    """Consecutive ranges, each with at least one member, the dearest as cheap as can be and the rest as even as can be.

    Raises ValueError when there are more parts than members.
    """
    count = len(costs)
    if parts > count:
        raise ValueError(f"{count} layers cannot be divided among {parts} ranks: use at most {count}")
    until = list(accumulate(costs, initial=0.0))
    dearest = _cuts(until, parts, lambda worst, cost: max(worst, cost))[0] * (1 + 1e-9)
    bounds = _cuts(until, parts, lambda spread, cost: spread + cost * cost if cost <= dearest else math.inf)[1]
    return [range(a, b) for a, b in pairwise((*bounds, count))]


def _cuts(until: Sequence[float], parts: int, joined: Callable[[float, float], float]) -> tuple[float, tuple[int, ...]]:
    """The cuts that make a sum over parts smallest: its value, and where each part begins."""
    count = len(until) - 1
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())] + [(math.inf, ())] * count
    for part in range(1, parts + 1):
        row: list[tuple[float, tuple[int, ...]]] = [(math.inf, ())] * (count + 1)
        for end in range(part, count - (parts - part) + 1):
            for start in reversed(range(part - 1, end)):
                value = joined(best[start][0], until[end] - until[start])
                if value < row[end][0] * (1 - 1e-12) or not row[end][1]:
                    row[end] = value, (*best[start][1], start)
        best = row
    return best[count]
