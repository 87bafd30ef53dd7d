"""Speech by espeak-ng with the time of every phoneme. A development dependency: a recorded voice needs none of this."""

from __future__ import annotations

import ctypes.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soxr
from jaxtyping import Float

from liveavatar.types import SPEECH_RATE

_ALIASES = {"en-gb": "en", "fr-fr": "fr"}  # as `espeak-ng --voices` lists them: as the library knows them
_CHILD = Path(__file__).with_name("espeak_child.py")


@dataclass(frozen=True)
class Phoneme:
    """A sound of speech in IPA, from `start` to `end` in seconds; an empty name is a pause."""

    start: float
    end: float
    name: str


@dataclass(frozen=True)
class Line:
    """What to say and how: an espeak-ng voice (`en-us`, `de+f2`), words a minute, pitch and its range 0 to 99."""

    text: str
    voice: str = "en-us"
    rate: int = 165
    pitch: int = 50
    range: int = 50


@dataclass(frozen=True)
class Spoken:
    """One line as sound: float32 mono at 16 kHz, and its phonemes."""

    pcm: Float[np.ndarray, " samples"]
    phonemes: tuple[Phoneme, ...]


@lru_cache(maxsize=1)
def library() -> str | None:
    """The name of the espeak-ng library of this machine; None if there is none."""
    names = ("libespeak-ng.so.1", ctypes.util.find_library("espeak-ng"), "libespeak-ng.dylib", "libespeak-ng.dll")
    for name in filter(None, names):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    return None


def speak(lines: Sequence[Line]) -> list[Spoken]:
    """Say lines, one after another in a fresh process: the same lines give the same samples.

    Raises:
        ValueError: when espeak-ng is not installed, or lacks a voice.
    """
    name = library()
    if name is None:
        raise ValueError(
            "espeak-ng is not installed, so no voice can be synthesised. Install it (Debian and Ubuntu: "
            "apt-get install espeak-ng; Fedora: dnf install espeak-ng; macOS: brew install espeak-ng), or give a "
            "recorded voice: --audio file.wav, in Python make_clip(seed, seconds, audio=samples)."
        )
    wanted = json.dumps([vars(line) | {"voice": _known(line.voice)} for line in lines])
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(_CHILD), name], input=wanted.encode(), capture_output=True, check=False
    )
    if done.returncode:
        raise ValueError(f"espeak-ng failed: {done.stderr.decode(errors='replace').strip()[-300:] or done.returncode}.")
    head, _, sound = done.stdout.partition(b"\n")
    samples, at, spoken = np.frombuffer(sound, np.int16), 0, []
    for line, told in zip(lines, json.loads(head), strict=True):
        if "error" in told:
            raise ValueError(f"espeak-ng: {told['error']}. `espeak-ng --voices` lists them (asked for: {line.voice}).")
        pcm = samples[at : at + told["samples"]].astype(np.float32) / 32768
        at += told["samples"]
        spoken.append(_heard(pcm, told["rate"], told["phonemes"]))
    return spoken


def _known(voice: str) -> str:
    language, plus, variant = voice.partition("+")
    return _ALIASES.get(language.lower(), language) + plus + variant


def _heard(pcm: np.ndarray, rate: int, told: list) -> Spoken:
    starts = [sample / rate for sample, _ in told] + [len(pcm) / rate]
    phonemes = [
        Phoneme(start, end, name)
        for start, end, (_, name) in zip(starts[:-1], starts[1:], told, strict=True)
        if end > start
    ]
    at_16k = soxr.resample(pcm, rate, SPEECH_RATE, quality="HQ") if len(pcm) else pcm
    return Spoken(np.asarray(at_16k, np.float32), tuple(phonemes))
