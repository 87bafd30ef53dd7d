"""Curves of any length in bounded memory: means, drift by windows, correlation over a range of lags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

Curve = Float[np.ndarray, " t"]


@dataclass
class Mean:
    """Mean of all that was added."""

    count: int = 0
    total: float = 0.0

    def add(self, values: Sequence[float] | Curve) -> None:
        self.count += len(values)
        self.total += float(np.sum(values))

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else float("nan")


@dataclass
class Windows:
    """Means over windows of equal length; when there are too many, neighbours are joined and windows are twice as long.

    `frames` is the length of a window now, `most` how many are kept at the most.
    """

    frames: int = 5
    most: int = 512
    means: list[float] = field(default_factory=list)
    _open: Mean = field(default_factory=Mean)

    def add(self, values: Curve) -> None:
        values = np.asarray(values, np.float64)
        while len(values):
            take = self.frames - self._open.count
            self._open.add(values[:take])
            values = values[take:]
            if self._open.count == self.frames:
                self.means.append(self._open.value)
                self._open = Mean()
            if len(self.means) == self.most:
                self.means = np.reshape(self.means, (-1, 2)).mean(1).tolist()
                self.frames *= 2

    def series(self, fps: float) -> tuple[Curve, Curve]:
        """Minutes of the middles of all full windows, and their means; of a video below one window, what there is."""
        means = self.means or ([self._open.value] if self._open.count else [])
        return (np.arange(len(means)) + 0.5) * self.frames / fps / 60, np.array(means)


def start_end(values: Curve, share: float = 0.15) -> float:
    """Mean of the last 15 % minus that of the first: signed, so that it tells the direction too."""
    size = max(1, round(len(values) * share))
    return float(np.mean(values[-size:]) - np.mean(values[:size]))


def slope(x: Curve, y: Curve) -> tuple[float, float]:
    """Slope of the least-squares line and its standard error; NaN where there are too few points (2; 3 for the error).

    The error assumes that windows err independently, which neighbours in a video do not quite.
    """
    if len(x) < 2:
        return float("nan"), float("nan")
    centred = x - x.mean()
    spread = float((centred**2).sum())
    found = float((centred * y).sum() / spread)
    if len(x) < 3:
        return found, float("nan")
    rest = y - y.mean() - found * centred
    return found, float(np.sqrt((rest**2).sum() / (len(x) - 2) / spread))


class LaggedCorrelation:
    """Pearson's r between two curves at every lag from -`reach` to `reach` frames, added piece by piece.

    A lag above 0 means that the first curve comes later than the second.
    """

    def __init__(self, reach: int) -> None:
        self.reach, self.seen = reach, 0
        self._sums = np.zeros((2 * reach + 1, 6))
        self._tail = np.zeros((2, 0))

    def add(self, a: Curve, b: Curve) -> None:
        """The next values of both; places where either is NaN are left out."""
        both = np.concatenate([self._tail, np.stack([a, b]).astype(np.float64)], axis=1)
        held, total = self._tail.shape[1], both.shape[1]
        for row, lag in enumerate(range(-self.reach, self.reach + 1)):
            # pairs (a[n], b[n - lag]) of which the later is new
            ends = np.arange(held, total)
            x_at, y_at = (ends, ends - lag) if lag >= 0 else (ends + lag, ends)
            fits = (x_at >= 0) & (y_at >= 0)
            x, y = both[0, x_at[fits]], both[1, y_at[fits]]
            good = np.isfinite(x) & np.isfinite(y)
            x, y = x[good], y[good]
            self._sums[row] += (len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y)
        self.seen += len(a)
        self._tail = both[:, max(0, total - self.reach) :] if self.reach else np.zeros((2, 0))

    def values(self) -> Curve:
        """r for every lag, NaN where a curve is constant or has fewer than 3 values."""
        n, x, y, xx, yy, xy = self._sums.T
        with np.errstate(divide="ignore", invalid="ignore"):
            over = (n * xx - x * x).clip(0) * (n * yy - y * y).clip(0)
            r = (n * xy - x * y) / np.sqrt(over)
        return np.where((n >= 3) & (over > 1e-12 * (n * n) ** 2), r, np.nan)

    def best(self) -> tuple[float, int]:
        """The highest r and its lag in frames; NaN and 0 where there is none."""
        found = self.values()
        if not np.isfinite(found).any():
            return float("nan"), 0
        place = int(np.nanargmax(found))
        return float(found[place]), place - self.reach
