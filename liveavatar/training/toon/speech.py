"""From sound to the mouth: the one mapping that all toons speak by.

What the mouth does = how loud the voice is now, against its own recent level × the shape of the sound being spoken,
smoothed over 80 ms. The shape is heard in the spectrum: the first formant opens, the balance of high and low rounds or
spreads, hiss shows teeth. Where the phonemes are known (espeak-ng) they sharpen it: half of the shape is theirs, and on
p, b and m the lips meet. Nothing looks further ahead than 0.3 s. Silence leaves the mouth exactly shut.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from liveavatar.media.espeak import Phoneme
from liveavatar.types import FPS, SPEECH_RATE

HOP_RATE = 100
"""Hops per second of the features."""

CURVES = ("opening", "width", "rounding", "teeth", "tongue")

_WINDOW, _FFT = 400, 512
_AHEAD_S, _BEHIND_S, _SMOOTH_S = 0.12, 3.0, 0.16
_QUIETEST_DB, _GATE_DB, _SPAN_DB, _DEPTH_DB = -38.0, -52.0, 20.0, 27.0

# opening, width, rounding, teeth, tongue
_VOWELS = {
    **dict.fromkeys("aäæɐ", (1.0, 0.35, 0.0, 0.25, 0.1)),
    **dict.fromkeys("ɑʌɒ", (0.92, 0.0, 0.1, 0.1, 0.0)),
    **dict.fromkeys("ɛœ", (0.68, 0.45, 0.0, 0.35, 0.2)),
    **dict.fromkeys("ɔ", (0.72, -0.3, 0.6, 0.0, 0.0)),
    **dict.fromkeys("eɜɚɝ", (0.5, 0.5, 0.1, 0.45, 0.2)),
    **dict.fromkeys("oɤø", (0.5, -0.4, 0.85, 0.0, 0.0)),
    **dict.fromkeys("əɵɘ", (0.42, 0.1, 0.0, 0.25, 0.1)),
    **dict.fromkeys("iɪɨᵻ", (0.32, 1.0, 0.0, 0.6, 0.2)),
    **dict.fromkeys("uʊɯyʏʉ", (0.3, -0.7, 1.0, 0.0, 0.0)),
}
_CONSONANTS = {
    **dict.fromkeys("pbm", (0.0, 0.0, 0.1, 0.0, 0.0)),
    **dict.fromkeys("fvʋɸβ", (0.1, 0.0, 0.0, 1.0, 0.0)),
    **dict.fromkeys("szʦʣ", (0.16, 0.5, 0.0, 1.0, 0.0)),
    **dict.fromkeys("ʃʒʂʐɕʑ", (0.22, -0.3, 0.55, 0.9, 0.0)),
    **dict.fromkeys("θð", (0.24, 0.2, 0.0, 0.6, 1.0)),
    **dict.fromkeys("tdnɾɲɳʈɖ", (0.24, 0.2, 0.0, 0.5, 0.8)),
    **dict.fromkeys("lɫʎɭ", (0.34, 0.1, 0.0, 0.3, 1.0)),
    **dict.fromkeys("rɹɻʁʀ", (0.32, -0.1, 0.3, 0.2, 0.3)),
    **dict.fromkeys("kgɡŋxɣqχhɦħʔ", (0.3, 0.1, 0.0, 0.2, 0.2)),
    **dict.fromkeys("w", (0.18, -0.7, 1.0, 0.0, 0.0)),
    **dict.fromkeys("jɥç", (0.28, 0.7, 0.0, 0.5, 0.2)),
}
_SHAPES = _VOWELS | _CONSONANTS
_REST = (0.0, 0.0, 0.0, 0.0, 0.0)
_BREATH_S = 0.06

# Least squares from the logarithms of each band's share of the power (and 1) to the shapes of the phonemes, over 14
# minutes of 36 espeak-ng voices in six languages; stretched about the mean, since a fit is flatter than what it fits.
_READING = np.array(
    [
        [-0.11, 0.03, 0.10, 0.02, 0.09, -0.08, 0.50],
        [0.07, -0.16, -0.10, 0.05, 0.21, 0.02, 0.39],
        [-0.13, 0.19, 0.05, -0.12, -0.10, -0.01, -0.09],
        [-0.08, -0.05, -0.12, -0.01, 0.02, 0.10, 0.26],
        [0.05, 0.06, -0.07, 0.03, -0.02, 0.02, 0.29],
    ]
)
_MIDDLE = np.array([0.39, 0.13, 0.19, 0.32, 0.22])
_STRETCH = 1.6
_TRUST = 0.5
"""How much the phonemes say where they are known; the rest is heard."""


def mouth(pcm: Float[np.ndarray, " samples"], frames: int, phonemes: Sequence[Phoneme] | None = None) -> dict:
    """The mouth's curves, float32 [frames] each (see `CURVES`), for sound at 16 kHz.

    `phonemes` say what is spoken when; None has it heard. Frame k is heard at (k + 0.5) / 25 s.
    """
    bands, loud = heard(pcm, frames)
    shapes = _heard_shapes(bands, loud)
    hops = len(loud)
    if phonemes is not None:
        shapes = shapes + _TRUST * (_spoken_shapes(phonemes, hops) - shapes)
    shapes = smoothed(shapes)
    opening = 1.2 * shapes[0] * (0.35 + 0.65 * loud) * np.clip(loud * 6, 0, 1)
    if phonemes is not None:
        opening = opening * (1 - _closures(phonemes, hops))
    shapes = np.concatenate([smoothed(opening[None], 0.08), shapes[1:]])
    shapes[0][shapes[0] < 0.02] = 0
    low, high = (-1.0, 1.0), (0.0, 1.0)
    return {
        name: at_frames(row, frames).clip(*(low if name == "width" else high))
        for name, row in zip(CURVES, shapes, strict=True)
    }


def heard(pcm: np.ndarray, frames: int) -> tuple[Float[np.ndarray, "bands hops"], Float[np.ndarray, " hops"]]:
    """`band_levels` and `loudness` of the sound of so many frames."""
    bands = band_levels(pcm, max(1, round(frames / FPS * HOP_RATE)))
    return bands, loudness(bands)


def at_frames(row: Float[np.ndarray, " hops"], frames: int) -> Float[np.ndarray, " t"]:
    """A curve known every 10 ms, in the middle of each frame, float32."""
    at = ((np.arange(frames) + 0.5) / FPS * HOP_RATE - 0.5).clip(0, len(row) - 1)
    return np.interp(at, np.arange(len(row)), row).astype(np.float32)


_EDGES = (80, 300, 550, 1100, 2000, 3500, 7600)


def band_levels(pcm: np.ndarray, hops: int) -> Float[np.ndarray, "bands hops"]:
    """Power in bands (edges at 80, 300, 550, 1100, 2000, 3500 and 7600 Hz) every 10 ms; the first row is all of it."""
    hop = SPEECH_RATE // HOP_RATE
    padded = np.zeros(hops * hop + _WINDOW, np.float32)
    part = pcm[: hops * hop + _WINDOW // 2]
    padded[_WINDOW // 2 - hop // 2 :][: len(part)] = part[: len(padded) - _WINDOW // 2 + hop // 2]
    pieces = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::hop][:hops]
    power = np.abs(np.fft.rfft(pieces * np.hanning(_WINDOW), _FFT)) ** 2 / (_WINDOW * _FFT * 0.375 / 2)
    place = np.searchsorted(np.fft.rfftfreq(_FFT, 1 / SPEECH_RATE), _EDGES)
    bands = [power[:, a:b].sum(1) for a, b in pairwise(place)]
    return np.stack([np.sum(bands, axis=0), *bands])


def loudness(bands: Float[np.ndarray, "bands hops"]) -> Float[np.ndarray, " hops"]:
    """0 to 1: the level now, against the loudest of the last 3 s and the next 0.12 s."""
    level = 10 * np.log10(smoothed(bands[:1], 0.05)[0] + 1e-12)
    ahead, behind = round(_AHEAD_S * HOP_RATE), round(_BEHIND_S * HOP_RATE)
    padded = np.pad(level, (behind, ahead), constant_values=-120)
    peak = np.lib.stride_tricks.sliding_window_view(padded, ahead + behind + 1).max(-1)
    loud = ((level - np.maximum(peak, _QUIETEST_DB) + _DEPTH_DB) / _SPAN_DB).clip(0, 1)
    return np.where(level > _GATE_DB, loud, 0.0)


def smoothed(rows: np.ndarray, seconds: float = _SMOOTH_S) -> np.ndarray:
    """Each row as a mean over a bell of that length, its ends held."""
    taps = np.hanning(round(seconds * HOP_RATE) | 1)
    half = len(taps) // 2
    padded = np.pad(rows, ((0, 0), (half, half)), mode="edge")
    return np.stack([np.convolve(row, taps / taps.sum(), "valid") for row in padded])


def _spoken_shapes(phonemes: Sequence[Phoneme], hops: int) -> np.ndarray:
    shapes = np.zeros((hops, len(CURVES)))
    last = _REST
    for phoneme in phonemes:
        known = [letter for letter in phoneme.name if letter in _SHAPES]
        if not known and phoneme.end - phoneme.start > _BREATH_S and not phoneme.name:
            known, targets = [""], [_REST]
        else:
            targets = [_SHAPES[letter] for letter in known] or [last]
        edges = np.linspace(phoneme.start, phoneme.end, len(targets) + 1) * HOP_RATE
        for target, a, b in zip(targets, edges[:-1], edges[1:], strict=True):
            shapes[round(a) : round(b)] = target
        last = targets[-1]
    return shapes.T


def _closures(phonemes: Sequence[Phoneme], hops: int) -> np.ndarray:
    """1 where the lips must meet (p, b, m), softly reached."""
    shut = np.zeros(hops)
    t = np.arange(hops) / HOP_RATE
    for phoneme in phonemes:
        if phoneme.name[:1] in "pbm" and phoneme.name:
            middle, half = (phoneme.start + phoneme.end) / 2, (phoneme.end - phoneme.start) / 2
            np.maximum(shut, np.exp(-(np.maximum(np.abs(t - middle) - half * 0.6, 0) ** 2) / (2 * 0.022**2)), out=shut)
    return shut


def _heard_shapes(bands: np.ndarray, loud: np.ndarray) -> np.ndarray:
    """The shape of the mouth from the sound alone: a linear reading of the spectrum's envelope."""
    share = np.log10(bands[1:] / (bands[1:].sum(0) + 1e-12) + 1e-4)
    read = _READING[:, :-1] @ share + _READING[:, -1:]
    stretched = _MIDDLE[:, None] + _STRETCH * (read - _MIDDLE[:, None])
    return stretched.clip(np.array([[0.0], [-1], [0], [0], [0]]), 1) * (loud > 0)
