"""A source whose matrices come in one byte a number: read, merged with what lies over them, then quantised.

Rows have scales of their own, so a rank that reads its rows alone gets the bits of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from liveavatar.checkpoint.read import TensorSource, expect, read_rows, read_straight
from liveavatar.ops.quantise import KINDS, quantise

SCALE = ".scale"


class Quantised:
    """`base` with the matrices `shapes` as payload under their own name and scales under `….scale`."""

    def __init__(self, base: TensorSource, kind: str, shapes: Mapping[str, torch.Size]) -> None:
        self.base, self.kind, self.shapes = base, kind, dict(shapes)
        self._last: tuple[Any, tuple[Tensor, Tensor]] | None = None

    @property
    def origin(self) -> str:
        return f"{self.base.origin} in {self.kind}"

    def expect(self, shapes: Mapping[str, torch.Size]) -> None:
        expect(self.base, {name: shape for name, shape in shapes.items() if self._matrix(name) in (None, name)})

    def read(self, name: str, shape: torch.Size) -> Tensor:
        matrix = self._matrix(name)
        return self.base.read(name, shape) if matrix is None else self._part(name, matrix, 0, shape[0])

    def read_rows(self, name: str, shape: torch.Size, start: int, stop: int) -> Tensor:
        matrix = self._matrix(name)
        if matrix is None:
            return read_rows(self.base, name, shape, start, stop)
        return self._part(name, matrix, start, min(stop, shape[0]))

    def read_straight(self, name: str, shape: torch.Size, dtype: torch.dtype, room: Tensor, start: int) -> bool:
        return self._matrix(name) is None and read_straight(self.base, name, shape, dtype, room, start)

    def _matrix(self, name: str) -> str | None:
        """The matrix that a name is a part of."""
        owner = name.removesuffix(SCALE) + ".weight" if name.endswith(SCALE) else name
        return owner if owner in self.shapes else None

    def _part(self, name: str, matrix: str, start: int, stop: int) -> Tensor:
        """Payload or scales of some rows; the other of the two is asked for next, so both are kept for once."""
        key = matrix, start, stop
        if self._last is None or self._last[0] != key:
            shape = self.shapes[matrix]
            whole = start == 0 and stop == shape[0]
            rows = self.base.read(matrix, shape) if whole else read_rows(self.base, matrix, shape, start, stop)
            self._last = key, quantise(rows, self.kind)
        return self._last[1][name != matrix]


def quantised(source: TensorSource, kind: str, shapes: Mapping[str, torch.Size]) -> TensorSource:
    """The source itself, where it was converted to this kind already; else one that quantises what it reads.

    Raises ValueError for a source that was converted to another kind.
    """
    first = next(iter(shapes))
    names = getattr(source, "names", None)
    if names is None or first.removesuffix(".weight") + SCALE not in set(names()):
        return Quantised(source, kind, shapes)
    held = source.place(first).dtype  # type: ignore[attr-defined] - a source that lists its names knows their places
    if held != KINDS[kind]:
        there = next((name for name, dtype in KINDS.items() if dtype == held), str(held))
        raise ValueError(f"weights.dir holds weights in {there}, and precision.weights={kind}: write {there}")
    return source


def check_kind(kind: Any, key: str = "weights") -> str | None:
    """`precision.weights` or `.cache`: null, or a kind of one-byte number. Raises ValueError, naming it, for others."""
    if kind is None or kind in KINDS:
        return kind
    raise ValueError(f"precision.{key}={kind!r} is unknown; write {', '.join(KINDS)}, or null for precision.dit")
