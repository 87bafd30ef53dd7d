"""Voices as other throats, microphones and rooms would carry them: the same words in another timbre."""

from __future__ import annotations

import numpy as np
import soxr
from jaxtyping import Float

from liveavatar.training.sources import Told
from liveavatar.types import FPS, SPEECH_RATE

Sound = Float[np.ndarray, " samples"]

_KNOTS = np.array([60, 200, 500, 1000, 2000, 4000, 8000], float)
"""Hz at which a colouring has a gain of its own, in between it is drawn straight over the logarithm."""


def coloured(sound: Sound, rng: np.random.Generator) -> Sound:
    """`sound` through another microphone, as loud as before: some tones louder, others softer, half the time a hiss.

    The whole leans by -5 to +2 dB an octave, each knot by 5 dB around that; the hiss is 15 to 45 dB below the voice.
    A silent sound stays as it is.
    """
    level = _level(sound)
    if level == 0:
        return sound
    lean = rng.uniform(-5.0, 2.0)
    gains = lean * np.log2(_KNOTS / 1000) + rng.normal(0, 5.0, len(_KNOTS))
    spectrum = np.fft.rfft(sound)
    hertz = np.fft.rfftfreq(len(sound), 1 / SPEECH_RATE).clip(_KNOTS[0])
    spectrum *= 10 ** (np.interp(np.log(hertz), np.log(_KNOTS), gains) / 20)
    made = np.fft.irfft(spectrum, len(sound))
    made *= level / max(_level(made), 1e-9)
    if rng.random() < 0.5:
        made += rng.normal(0, level * 10 ** (-rng.uniform(15, 45) / 20), len(made))
    return np.clip(made, -1, 1).astype(np.float32)


def revoiced(told: Told, rng: np.random.Generator) -> Told:
    """What a larger or smaller throat would say: pitch and formants by 0.8 to 1.25, and the mouth as much faster."""
    factor = float(2 ** rng.uniform(-0.32, 0.32))
    sound = soxr.resample(told.sound, SPEECH_RATE * factor, SPEECH_RATE, quality="MQ").clip(-1, 1)
    count = int(len(sound) * FPS / SPEECH_RATE)
    at = np.arange(count) * factor
    frames = np.arange(len(told.curves))
    curves = np.stack([np.interp(at, frames, curve) for curve in told.curves.T], axis=1)
    return Told(sound.astype(np.float32), curves.astype(np.float32))


def _level(sound: Sound) -> float:
    return float(np.sqrt(np.mean(np.square(sound, dtype=np.float64)))) if len(sound) else 0.0
