"""Clips of a user's own: mp4 files with sound, each beside a text file with its prompt (a `Source`)."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import torch

from liveavatar.media.audio import load_voice
from liveavatar.media.video import fit_frame, probe, read_video
from liveavatar.sampling.conditioning import DROPPED_FRAMES
from liveavatar.training.sources import Look, Talk
from liveavatar.types import BLOCK_FRAMES, FPS, SPEECH_RATE

KEY = "data.dir"
LEAST = BLOCK_FRAMES - DROPPED_FRAMES
"""Frames of the shortest clip that fills a block."""


class FolderSource:
    """The mp4 files of a folder by name; `seconds` of each are used, the last `held_out` share validates.

    Raises ValueError, naming data.dir and the file, for a folder that is missing or empty, and for a clip that cannot
    be used: without pictures, sound or prompt, or shorter than a block.
    """

    def __init__(self, dir: str, seconds: float = 8.0, held_out: float = 0.1) -> None:
        self.dir, self.seconds = Path(dir).expanduser(), seconds
        if not seconds * FPS >= LEAST:
            raise ValueError(f"data.seconds={seconds} is less than a block; use {LEAST / FPS} or more")
        if not 0 < held_out < 1:
            raise ValueError(f"data.held_out={held_out} is a share of the clips: use a value between 0 and 1")
        if not self.dir.is_dir():
            raise ValueError(f"{KEY}={dir} is not a folder: name one that holds mp4 files, each beside a .txt")
        self.files = sorted(self.dir.glob("*.mp4"))
        if not self.files:
            raise ValueError(f"{KEY}={dir} holds no mp4 file: put clips with sound there, each beside a .txt")
        for file in self.files:
            _check(file)
        count = len(self.files)
        spared = min(count - 1, max(1, math.ceil(held_out * count)))
        self.kept = range(count - spared)
        # one clip alone has to serve for both
        self.held_out = range(count - spared, count) if spared else range(1)

    @property
    def token(self) -> str:
        known = "".join(f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in self.files)
        return f"folder {self.seconds} {hashlib.sha256(known.encode()).hexdigest()}"

    def look(self, number: int, frames: int, size: tuple[int, int]) -> Look:
        seen = self._frames(number, frames, size)
        if len(seen) < frames:  # a short clip stands still at its end
            seen = np.concatenate((seen, np.repeat(seen[-1:], frames - len(seen), axis=0)))
        return Look(seen, np.zeros((frames, 4), np.float32))

    def talk(self, number: int, size: tuple[int, int]) -> Talk:
        file = self.files[number]
        frames = self._frames(number, round(self.seconds * FPS), size)
        sound = load_voice(file, KEY).at(SPEECH_RATE)
        sound = sound[: len(frames) * SPEECH_RATE // FPS].astype(np.float32)
        return Talk(frames, sound, file.with_suffix(".txt").read_text(encoding="utf-8").strip(), frames[0])

    def _frames(self, number: int, limit: int, size: tuple[int, int]) -> np.ndarray:
        seen = [fit_frame(frame, *size) for frame in read_video(self.files[number], limit=limit, key=KEY)]
        pixels = (torch.stack(seen).clamp(-1, 1) + 1) * 127.5
        return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _check(file: Path) -> None:
    """Raises ValueError unless a clip has pictures enough, sound and a prompt."""
    next(iter(read_video(file, limit=1, key=KEY)))
    found = probe(file)
    if found["frames"] / max(1, round(found["fps"] / FPS)) < LEAST:
        raise ValueError(f"{KEY}: {file} has {found['frames']} frames, less than a block of {LEAST}: remove it")
    if not found["audio_rate"]:
        raise ValueError(f"{KEY}: {file} has no sound: lips can only be learnt with the voice they follow")
    prompt = file.with_suffix(".txt")
    if not prompt.is_file():
        raise ValueError(f"{KEY}: {file} has no prompt: write what it shows into {prompt}")
