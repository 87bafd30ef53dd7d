"""Distances between two streams of vectors at every shift: what Sync-C and Sync-D are read from."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

EPS = 1e-6


class ShiftedDistances:
    """Mean over frames of |v(i) - a(i + s)| for every shift s within `reach`; outside of the stream a is 0.

    A row of NaN in `v` (no face) is left out. Memory does not grow with the stream.
    """

    def __init__(self, reach: int, width: int = 1024) -> None:
        self.reach, self._totals, self._counts = reach, np.zeros(2 * reach + 1), np.zeros(2 * reach + 1)
        self._width, self._waiting = width, np.zeros((0, width))
        self._sound = np.zeros((reach, width))  # of the last frames before the waiting ones; zeros before the first

    def add(self, lips: Float[np.ndarray, "n d"], sound: Float[np.ndarray, "n d"]) -> None:
        self._waiting = np.concatenate([self._waiting, lips])
        self._sound = np.concatenate([self._sound, sound])
        self._measure()

    def _measure(self) -> None:
        ready = len(self._sound) - 2 * self.reach  # frames whose latest neighbour is there
        for number in range(min(ready, len(self._waiting))):
            if not np.isfinite(self._waiting[number]).all():
                continue
            around = self._sound[number : number + 2 * self.reach + 1]
            self._totals += np.linalg.norm(self._waiting[number] - around + EPS, axis=1)
            self._counts += 1
        done = max(0, min(ready, len(self._waiting)))
        self._waiting, self._sound = self._waiting[done:], self._sound[done:]

    def result(self) -> tuple[float, float, int, int]:
        """Confidence, distance, the shift at which it is least (frames by which sound follows lips), frames measured.

        Of all that was added; NaN where nothing was.
        """
        kept = self._waiting, self._sound, self._totals.copy(), self._counts.copy()
        self._sound = np.concatenate([self._sound, np.zeros((self.reach, self._width))])
        self._measure()
        totals, counts = self._totals, self._counts
        self._waiting, self._sound, self._totals, self._counts = kept
        if not counts[0]:
            return float("nan"), float("nan"), 0, 0
        means = totals / counts
        least = int(means.argmin())
        return float(np.median(means) - means[least]), float(means[least]), least - self.reach, int(counts[0])
