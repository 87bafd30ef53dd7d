"""Other timbres keep the words, their time and their loudness; what the encoder is told of them fits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from liveavatar.training.sources import Told
from liveavatar.training.timbre import coloured, revoiced
from liveavatar.types import FPS, SPEECH_RATE

SECONDS = 2.0
TIME = np.arange(round(SECONDS * SPEECH_RATE)) / SPEECH_RATE


def _told(hertz: float = 400.0) -> Told:
    """A tone that swells once a second, and a mouth that opens with it."""
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * TIME)
    frames = np.arange(round(SECONDS * FPS)) / FPS
    opening = 0.5 - 0.5 * np.cos(2 * np.pi * frames)
    sound = (0.2 * swell * np.sin(2 * np.pi * hertz * TIME)).astype(np.float32)
    return Told(sound, np.stack([opening, 1 - opening, opening**2], 1).astype(np.float32))


def _rms(sound: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))


def _envelope(sound: np.ndarray) -> np.ndarray:
    whole = sound[: len(sound) // 640 * 640].reshape(-1, 640)
    return np.sqrt(np.mean(np.square(whole, dtype=np.float64), 1))


def test_a_coloured_voice_is_as_loud_and_in_step_but_not_the_same() -> None:
    told = _told()
    for seed in range(8):
        made = coloured(told.sound, np.random.default_rng(seed))
        assert made.dtype == np.float32
        assert made.shape == told.sound.shape
        assert _rms(made) == pytest.approx(_rms(told.sound), rel=0.05)
        assert np.corrcoef(_envelope(made), told.curves[:, 0])[0, 1] > 0.95
    wide = np.random.default_rng(1).normal(0, 0.1, len(TIME)).astype(np.float32)
    shapes = [np.abs(np.fft.rfft(coloured(wide, np.random.default_rng(seed)))) for seed in range(8)]
    bass, treble = slice(200, 1000), slice(8000, 14_000)  # 100 to 500 Hz, 4 to 7 kHz
    slopes = [20 * np.log10(shape[treble].mean() / shape[bass].mean()) for shape in shapes]
    assert min(slopes) < -8
    assert max(slopes) - min(slopes) > 10


def test_silence_has_no_colour() -> None:
    silent = np.zeros(1000, np.float32)
    assert coloured(silent, np.random.default_rng(0)) is silent


def test_another_throat_moves_pitch_and_mouth_alike() -> None:
    told, seen = _told(), []
    for seed in range(8):
        made = revoiced(told, np.random.default_rng(seed))
        factor = len(told.sound) / len(made.sound)
        seen.append(factor)
        assert 0.8 <= factor <= 1.25
        assert len(made.curves) == int(len(made.sound) * FPS / SPEECH_RATE)
        spectrum = np.abs(np.fft.rfft(made.sound))
        assert spectrum.argmax() * SPEECH_RATE / len(made.sound) == pytest.approx(400 * factor, rel=0.02)
        count = min(len(made.curves), len(_envelope(made.sound)))
        assert np.corrcoef(_envelope(made.sound)[:count], made.curves[:count, 0])[0, 1] > 0.97
    assert max(seen) > 1.05
    assert min(seen) < 0.95


def test_the_same_draw_gives_the_same_voice() -> None:
    told = _told()
    first, second = (revoiced(told, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(torch.from_numpy(first.sound), torch.from_numpy(second.sound))
    assert not np.array_equal(
        coloured(told.sound, np.random.default_rng(1)), coloured(told.sound, np.random.default_rng(2))
    )
