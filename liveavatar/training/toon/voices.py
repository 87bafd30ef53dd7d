"""Who speaks: voices of espeak-ng in disjoint sets, and sounds that are no speech at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from liveavatar.media.espeak import Line, Phoneme, speak
from liveavatar.training.toon.texts import LANGUAGES, sentence
from liveavatar.types import SPEECH_RATE

SPLITS = ("train", "validation", "test")
SOUNDS = ("speech", "silence", "noise", "music")

_TONGUES = {
    "train": ("en-us", "de", "fr", "es", "it", "nl", "pl", "pt-br"),
    "validation": ("en-gb", "cs"),
    "test": ("en-gb-scotland", "sv", "fi", "es-419"),
}
_THROATS = {
    "train": ("", "m1", "m2", "m3", "m4", "f1", "f2", "f3", "Andy", "Annie", "linda", "max", "ed", "Alex", "paul"),
    "validation": ("m5", "f4"),
    "test": ("m6", "m7", "m8", "f5", "steph", "adam", "belinda"),
}
VOICES = {
    split: tuple(f"{tongue}+{throat}" if throat else tongue for tongue in _TONGUES[split] for throat in _THROATS[split])
    for split in SPLITS
}
"""Voices of each split: neither a language's accent nor a timbre is in two of them."""


@dataclass(frozen=True)
class Sound:
    """What is heard in a clip: float32 mono at 16 kHz; the phonemes if it is speech of espeak-ng, else None."""

    pcm: Float[np.ndarray, " samples"]
    kind: str
    phonemes: tuple[Phoneme, ...] | None = None


def talk(rng: np.random.Generator, seconds: float, voice: str, text: str | None = None) -> Sound:
    """A voice that says sentences with pauses in between, or one `text`; `seconds` long, silent after the last one.

    Speed, pitch and loudness are the seed's.

    Raises:
        ValueError: when espeak-ng is not installed, or has no such voice.
    """
    language = voice.split("+")[0].split("-")[0]
    rate, pitch, span = int(rng.uniform(125, 215)), int(rng.uniform(20, 80)), int(rng.uniform(30, 70))
    count = 1 if text is not None else int(np.ceil(seconds / 1.6)) + 1
    words = [text or sentence(rng, language if language in LANGUAGES else "en") for _ in range(count)]
    pauses = rng.uniform(0.12, 0.9, count) * (rng.random(count) < 0.8)
    total = round(seconds * SPEECH_RATE)
    pcm, phonemes, at = np.zeros(total, np.float32), [], round(float(rng.uniform(0, 0.5)) * SPEECH_RATE)
    # a long clip is spoken in few goes of the program, and no more of it than is heard
    for start in range(0, count, 12):
        if at >= total:
            break
        lines = [Line(text, voice, rate, pitch, span) for text in words[start : start + 12]]
        for spoken, pause in zip(speak(lines), pauses[start : start + 12], strict=True):
            part = spoken.pcm[: max(0, total - at)]
            pcm[at : at + len(part)] = part
            offset = at / SPEECH_RATE
            phonemes += [Phoneme(p.start + offset, p.end + offset, p.name) for p in spoken.phonemes]
            at += len(spoken.pcm) + round(pause * SPEECH_RATE)
    return Sound(_levelled(pcm, rng), "speech", tuple(phonemes))


def silence(rng: np.random.Generator, seconds: float) -> Sound:
    """Nothing, or the faint hiss of a room (-60 dB)."""
    hiss = rng.normal(0, 1e-3, round(seconds * SPEECH_RATE)) * (rng.random() < 0.5)
    return Sound(hiss.astype(np.float32), "silence")


def noise(rng: np.random.Generator, seconds: float) -> Sound:
    """Steady noise, white to brown."""
    samples = round(seconds * SPEECH_RATE)
    spectrum = np.fft.rfft(rng.normal(0, 1, samples))
    spectrum *= np.maximum(np.fft.rfftfreq(samples, 1 / SPEECH_RATE), 40) ** -rng.uniform(0, 1)
    return Sound(_levelled(np.fft.irfft(spectrum, samples).astype(np.float32), rng), "noise")


def music(rng: np.random.Generator, seconds: float) -> Sound:
    """Plucked chords over a bass: tones with harmonics that ring and fade."""
    samples = round(seconds * SPEECH_RATE)
    pcm, beat = np.zeros(samples + SPEECH_RATE), rng.uniform(0.22, 0.5)
    scale, root = np.array([0, 2, 4, 7, 9, 12, 14, 16]), rng.uniform(160, 330)
    for start in np.arange(0, seconds, beat):
        for note in rng.choice(scale, int(rng.integers(1, 4)), replace=False):
            pitch = root * 2 ** (note / 12) * rng.choice([0.5, 1.0, 2.0], p=(0.25, 0.6, 0.15))
            t = np.arange(round(min(1.0, 3 * beat) * SPEECH_RATE)) / SPEECH_RATE
            tone = sum(np.sin(2 * np.pi * pitch * k * t) / k**1.6 for k in range(1, 6) if pitch * k < 7500)
            at = round(start * SPEECH_RATE)
            part = (tone * np.exp(-t * rng.uniform(2.5, 6)) * np.minimum(t * 200, 1))[: len(pcm) - at]
            pcm[at : at + len(part)] += part
    return Sound(_levelled(pcm[:samples].astype(np.float32), rng), "music")


def _levelled(pcm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At -23 to -15 dB where it sounds, never above full scale."""
    loud = np.abs(pcm) > 1e-3
    level = float(np.sqrt(np.mean(pcm[loud] ** 2))) if loud.any() else 1.0
    gain = 10 ** (float(rng.uniform(-23, -15)) / 20) / level
    return np.clip(pcm * gain, -1, 1).astype(np.float32)
