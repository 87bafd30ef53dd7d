"""Distance of two clouds of features by their means and covariances: what FID and FVD are."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


class Moments:
    """Mean and covariance of vectors that come piece by piece, in float64.

    The first `most` vectors are kept as they are: as long as they suffice, no matrix of all dimensions is needed.
    """

    def __init__(self, width: int, most: int = 512) -> None:
        self.count, self._width, self._most = 0, width, most
        self._kept: list[np.ndarray] = []
        self._sum, self._outer = np.zeros(width), np.zeros((0, 0))
        self._origin = np.zeros(width)

    def add(self, vectors: Float[np.ndarray, "n d"]) -> None:
        vectors = np.asarray(vectors, np.float64)
        if not len(vectors):
            return
        if not self.count:
            self._origin = vectors[0].copy()  # sums about a vector of the cloud lose no digits to its distance from 0
        about = vectors - self._origin
        self.count += len(about)
        self._sum += about.sum(0)
        self._kept.append(about)
        if self.count > self._most:
            held = np.concatenate(self._kept)
            self._kept = []
            self._outer = held.T @ held + (self._outer if len(self._outer) else 0.0)

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        return self._origin + self._sum / max(1, self.count)

    @property
    def rows(self) -> Float[np.ndarray, "n d"] | None:
        """Vectors about their mean over the root of n - 1, whose square is the covariance; None for many."""
        if len(self._outer) or not self.count:
            return None
        return (np.concatenate(self._kept) - self._sum / self.count) / np.sqrt(max(1, self.count - 1))

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Over n - 1."""
        rows, mean = self.rows, self._sum / max(1, self.count)
        if rows is not None:
            return rows.T @ rows
        return (self._outer - self.count * np.outer(mean, mean)) / max(1, self.count - 1)


def frechet(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance of two normal distributions: |m-n|² + tr(S + T - 2 (S T)^½).

    With S = X'X and T = Y'Y of few rows, the trace of (S T)^½ is the sum of the singular values of X Y'. Of many it is
    that of (S^½ T S^½)^½, whose matrix is symmetric: its roots are real without repair.
    """
    apart = float(((a.mean - b.mean) ** 2).sum())
    x, y = a.rows, b.rows
    if x is not None and y is not None:
        both = float(np.linalg.svd(x @ y.T, compute_uv=False).sum())
        return max(0.0, apart + float((x**2).sum() + (y**2).sum() - 2 * both))
    first, second = a.covariance, b.covariance
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    both = float(np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum())
    return max(0.0, apart + float(np.trace(first) + np.trace(second)) - 2 * both)
