"""Sounds of clips made beforehand: a machine without espeak-ng then makes the clips that one with it would, to the
rounding of 16-bit sound.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from liveavatar.media.espeak import Phoneme
from liveavatar.training.saving import write_whole
from liveavatar.training.toon.clips import clip_sound
from liveavatar.training.toon.voices import Sound


def keep_sounds(folder: Path, seeds: Iterable[int], seconds: float, split: str = "train") -> int:
    """Write what the clips of those seeds say, in 16 bits; returns how many were missing.

    Raises ValueError for an unknown split, or speech without espeak-ng.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [seed for seed in seeds if not _path(folder, seed, seconds, split).is_file()]
    for seed in missing:
        sound, voice = clip_sound(seed, seconds, split)
        phonemes = sound.phonemes or ()
        tensors = {
            "pcm": (np.clip(sound.pcm, -1, 1) * 32767).round().astype(np.int16),
            "times": np.array([(p.start, p.end) for p in phonemes], np.float64).reshape(-1, 2),
        }
        names = json.dumps([p.name for p in phonemes]) if sound.phonemes is not None else ""
        about = {"kind": sound.kind, "voice": voice or "", "phonemes": names}
        write_whole(
            _path(folder, seed, seconds, split),
            lambda draft, tensors=tensors, about=about: save_file(tensors, draft, about),
        )
    return len(missing)


def kept_sound(folder: Path, seed: int, seconds: float, split: str) -> tuple[Sound, str | None]:
    """What the clip of that seed says, and in whose voice. Raises ValueError where it was not kept, or is broken."""
    path = _path(folder, seed, seconds, split)
    try:
        with safe_open(path, framework="np") as file:
            pcm, times, about = file.get_tensor("pcm"), file.get_tensor("times"), file.metadata()
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"data.sounds={folder} holds no sound of clip {seed} at {seconds} s ({error}): write it with python -m "
            f"liveavatar.training.toon --sounds {folder} --seconds {seconds} --split {split}, where espeak-ng is"
        ) from error
    phonemes = None
    if about["phonemes"]:
        names = json.loads(about["phonemes"])
        phonemes = tuple(Phoneme(float(a), float(b), name) for (a, b), name in zip(times, names, strict=True))
    return Sound(pcm.astype(np.float32) / 32767, about["kind"], phonemes), about["voice"] or None


def _path(folder: Path, seed: int, seconds: float, split: str) -> Path:
    return folder / f"{split}-{seed:08d}-{seconds:g}s.safetensors"
