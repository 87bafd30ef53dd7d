"""What the ear gets, frame by frame of the video: energy of the voice's band."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

BAND = (300.0, 3400.0)
"""Hertz: what a telephone carries of a voice."""

FLOOR = 1e-4
"""Loudness below which it is silent: -80 dB of full scale."""


def band_energy(pcm: Float[np.ndarray, " samples"], rate: int, frames: int, fps: float) -> Float[np.ndarray, " t"]:
    """Logarithm (base 10) of the RMS loudness in `BAND` under each frame; NaN for frames that have no sound."""
    found = np.full(frames, np.nan)
    for number in range(frames):
        piece = pcm[round(number * rate / fps) : round((number + 1) * rate / fps)]
        if len(piece) < 16:
            continue
        window = np.hanning(len(piece))
        power = np.abs(np.fft.rfft(piece * window)) ** 2
        tones = np.fft.rfftfreq(len(piece), 1 / rate)
        heard = 2 * power[(tones >= BAND[0]) & (tones <= BAND[1])].sum() / (len(piece) * (window**2).sum())
        found[number] = np.log10(np.sqrt(heard) + FLOOR)
    return found
