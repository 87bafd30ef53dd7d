"""What each metric means: its definition, scale, direction and what it requires. A value without a record is a bug."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

DIRECTIONS = ("higher", "lower", "none")
"""Which way is better; `none` where neither is: a description, to be compared with that of another video."""


@dataclass(frozen=True)
class About:
    """One metric: `name` is `group/name`, `scale` its unit and range, `requires` what it cannot do without."""

    name: str
    definition: str
    scale: str
    direction: str = "none"
    requires: str = ""

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"{self.name}: direction={self.direction!r} is none of {', '.join(DIRECTIONS)}")

    def row(self) -> dict[str, str]:
        return {key: value for key, value in vars(self).items() if key != "name"}


def records(*rows: tuple[str, str, str, str], requires: str = "") -> tuple[About, ...]:
    """Records from rows of name, definition, scale and direction."""
    return tuple(About(*row, requires=requires) for row in rows)


def skipped(reason: str, abouts: Iterable[About]) -> dict[str, float | str]:
    """What stands in the place of numbers that could not be had."""
    return {about.name: f"skipped: {reason}" for about in abouts}
