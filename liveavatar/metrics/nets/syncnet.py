"""SyncNet (Chung and Zisserman 2016): five frames of a face and a fifth of a second of sound, in one space.

By the names of the published `syncnet_v2.model`. The sound goes in as cepstral coefficients (`mfcc`).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

RATE = 16000
STEP = 160
"""Samples from one row of coefficients to the next."""

_FRAME, _FFT, _BANKS, _COEFFICIENTS, _LIFT = 400, 512, 26, 13, 22


def _flat(given: int, gives: int, kernel: tuple[int, int], padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(given, gives, kernel, padding=padding), nn.BatchNorm2d(gives), nn.ReLU()]


def _deep(given: int, gives: int, kernel: tuple[int, int, int], stride: int = 1, padding: int = 0) -> list[nn.Module]:
    conv = nn.Conv3d(given, gives, kernel, (1, stride, stride), (0, padding, padding))
    return [conv, nn.BatchNorm3d(gives), nn.ReLU()]


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))


class SyncNet(nn.Module):
    """`lips` and `sound` give vectors whose distance is small where they belong together."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_flat(1, 64, (3, 3), 1), nn.MaxPool2d(1), *_flat(64, 192, (3, 3), 1), nn.MaxPool2d(3, (1, 2)),
            *_flat(192, 384, (3, 3), 1), *_flat(384, 256, (3, 3), 1), *_flat(256, 256, (3, 3), 1), nn.MaxPool2d(3, 2),
            *_flat(256, 512, (5, 4)),
        )  # fmt: skip
        self.netcnnlip = nn.Sequential(
            *_deep(3, 96, (5, 7, 7), 2), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_deep(96, 256, (1, 5, 5), 2, 1), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *_deep(256, 256, (1, 3, 3), 1, 1), *_deep(256, 256, (1, 3, 3), 1, 1), *_deep(256, 256, (1, 3, 3), 1, 1),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)), *_deep(256, 512, (1, 6, 6)),
        )  # fmt: skip
        self.netfcaud, self.netfclip = _head(), _head()

    def sound(self, coefficients: Float[Tensor, "n 13 20"]) -> Float[Tensor, "n 1024"]:
        return self.netfcaud(self.netcnnaud(coefficients[:, None]).flatten(1))

    def lips(self, faces: Float[Tensor, "n 3 5 224 224"]) -> Float[Tensor, "n 1024"]:
        """Of BGR pixels, 0 to 255."""
        return self.netfclip(self.netcnnlip(faces).flatten(1))


def mfcc(pcm: Float[np.ndarray, " samples"], before: float | None = None) -> Float[np.ndarray, "steps 13"]:
    """Cepstral coefficients at 100 a second of sound at 16 kHz (-1 to 1), as SyncNet was trained with.

    Windows of 25 ms without a taper, pre-emphasis 0.97, 26 mel bands, liftering 22; the first coefficient is the
    logarithm of the energy. `before` is the sample that came before a piece of a stream.
    """
    samples = np.trunc(np.append(before or 0.0, pcm).astype(np.float64) * 32768).clip(-32768, 32767)
    samples = samples[1:] - 0.97 * samples[:-1]
    steps = 1 if len(samples) <= _FRAME else 1 + -(-(len(samples) - _FRAME) // STEP)
    padded = np.pad(samples, (0, max(0, (steps - 1) * STEP + _FRAME - len(samples))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::STEP][:steps]
    power = np.abs(np.fft.rfft(windows, _FFT)) ** 2 / _FFT
    tiny = np.finfo(float).eps
    energy = np.log(np.maximum(power.sum(1), tiny))
    bands = np.log(np.maximum(power @ _mel_bands().T, tiny))
    found = bands @ _cosines().T * (1 + _LIFT / 2 * np.sin(np.pi * np.arange(_COEFFICIENTS) / _LIFT))
    found[:, 0] = energy
    return found


def _mel_bands() -> Float[np.ndarray, "26 257"]:
    """Triangles, evenly spaced in mel from 0 to 8 kHz, on the bins of the spectrum."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, _BANKS + 2) / 2595) - 1)
    edges = np.floor((_FFT + 1) * hertz / RATE)
    bins = np.arange(_FFT // 2 + 1)
    left, middle, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    return np.where(bins < middle, rising, falling) * ((bins >= left) & (bins < right))


def _cosines() -> Float[np.ndarray, "13 26"]:
    """The orthonormal cosine transform (II)."""
    at = np.pi * np.arange(_COEFFICIENTS)[:, None] * (np.arange(_BANKS) + 0.5) / _BANKS
    return np.cos(at) * np.sqrt(2 / _BANKS) * np.where(np.arange(_COEFFICIENTS) == 0, np.sqrt(0.5), 1)[:, None]
