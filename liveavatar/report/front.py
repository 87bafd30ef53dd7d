"""The Pareto front: what no other run beats in everything at once."""

from __future__ import annotations

from collections.abc import Sequence


def pareto(points: Sequence[Sequence[float]]) -> list[bool]:
    """For each point, whether no other is at least as good in all values and better in one. Higher is better."""

    def beats(a: Sequence[float], b: Sequence[float]) -> bool:
        return all(x >= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)

    return [not any(beats(other, point) for other in points) for point in points]
