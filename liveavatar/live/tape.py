"""Sound by absolute sample number, of which the past can be forgotten and the future taken back."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Samples = Float[np.ndarray, " samples"]


class Tape:
    """Float32 samples `start` to `end`; zeros are read wherever there are none. Room grows to the most ever held."""

    def __init__(self) -> None:
        self.start = self.end = 0
        self._room = np.zeros(1 << 14, np.float32)
        self._low = 0  # where in the room sample `start` lies

    @property
    def nbytes(self) -> int:
        return self._room.nbytes

    def append(self, samples: Samples) -> None:
        held, count = self.end - self.start, len(samples)
        if self._low + held + count > len(self._room):
            room = self._room
            if held + count > len(room):
                room = np.zeros(1 << (held + count - 1).bit_length(), np.float32)
            room[:held] = self._room[self._low : self._low + held].copy()
            self._room, self._low = room, 0
        at = self._low + held
        self._room[at : at + count] = samples
        self.end += count

    def silence(self, until: int) -> None:
        """Zeros up to sample `until`, if it is not there yet."""
        if until > self.end:
            self.append(np.zeros(until - self.end, np.float32))

    def read(self, start: int, stop: int) -> Samples:
        """A copy of samples `start` to `stop` (excluded), which may lie anywhere."""
        found = np.zeros(stop - start, np.float32)
        low, high = max(start, self.start), min(stop, self.end)
        if low < high:
            at = self._low + low - self.start
            found[low - start : high - start] = self._room[at : at + high - low]
        return found

    def forget(self, before: int) -> None:
        """What lies before a sample will not be asked for again."""
        step = min(max(0, before - self.start), self.end - self.start)
        self.start += step
        self._low += step

    def cut(self, at: int) -> None:
        """Take back what lies at sample `at` and behind it."""
        self.end = min(self.end, max(at, self.start))

    def put_in(self, at: int, count: int) -> None:
        """Put zeros in ahead of sample `at`: what lies there and behind it comes later."""
        later = self.read(at, self.end)
        self.cut(at)
        self.append(np.zeros(count, np.float32))
        self.append(later)

    def take_out(self, at: int, count: int) -> None:
        """Leave out samples from `at` on: what lies behind them comes sooner."""
        later = self.read(at + count, self.end)
        self.cut(at)
        self.append(later)

    def fade(self, at: int, samples: int) -> None:
        """Silence from sample `at` on, faded into over so many samples."""
        if at >= self.end:
            return
        piece = self.read(at, self.end)
        ramp = np.linspace(1.0, 0.0, samples, dtype=np.float32)[: len(piece)]
        piece[: len(ramp)] *= ramp
        piece[len(ramp) :] = 0.0
        self.cut(at)
        self.append(piece)
