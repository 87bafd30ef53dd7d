"""A record over time that never grows: when it is full, neighbours become one, and the higher of the two stays."""

from __future__ import annotations

from dataclasses import dataclass

from liveavatar.memory.ledger import Holdings, ordered


@dataclass(frozen=True, slots=True)
class Point:
    """One moment. Bytes; None for what is not known on this device."""

    seconds: float
    phase: str
    unit: str
    block: int | None
    host: int
    allocated: int | None
    reserved: int | None
    driver: int | None
    held: Holdings

    @property
    def height(self) -> int:
        return self.host if self.reserved is None else self.allocated or 0


class Timeline:
    """At most `room` points of a stream of any length, evenly thinned; each stands for the highest of its stretch.

    Raises ValueError for fewer than 16 points: a figure needs some.
    """

    def __init__(self, room: int) -> None:
        if room < 16:
            raise ValueError(f"profile.points={room}: a timeline needs at least 16 points, 2000 make a fine figure")
        self.room, self.stride = room, 1
        self.points: list[Point] = []
        self._best: Point | None = None
        self._count = 0

    def add(self, point: Point) -> None:
        self._best = point if self._best is None or point.height >= self._best.height else self._best
        self._count += 1
        if self._count < self.stride:
            return
        self.points.append(self._best)
        self._best, self._count = None, 0
        if len(self.points) >= self.room:
            pairs = zip(self.points[::2], self.points[1::2], strict=False)
            rest = self.points[-1:] if len(self.points) % 2 else []
            self.points = [max(pair, key=lambda p: p.height) for pair in pairs] + rest
            self.stride *= 2

    def whole(self) -> list[Point]:
        """All that is kept, the stretch under way included."""
        return [*self.points, *([] if self._best is None else [self._best])]

    def table(self) -> dict[str, list[object]]:
        """Columns of equal length, for a file: smaller than a list of points, and what a plot wants."""
        points = self.whole()
        names = ordered({name for point in points for name in point.held})
        columns: dict[str, list[object]] = {
            key: [getattr(point, key) for point in points]
            for key in ("phase", "unit", "block", "host", "allocated", "reserved", "driver")
        }
        columns["seconds"] = [round(point.seconds, 4) for point in points]
        for side, place in (("device", 0), ("parked", 1)):
            for name in names:
                values = [point.held.get(name, (0, 0))[place] for point in points]
                if any(values):
                    columns[f"{side}/{name}"] = list(values)
        return {key: column for key, column in columns.items() if any(value is not None for value in column)}
