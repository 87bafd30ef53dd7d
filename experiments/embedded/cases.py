"""Clips that nobody was trained on, and the videos that the model makes of their portraits, voices and prompts."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from liveavatar.assemble import assemble
from liveavatar.config import compose
from liveavatar.training.toon import Clip, make_clip
from liveavatar.types import SPEECH_RATE, AvatarRequest

SIZE = (128, 128)
Frames = UInt8[np.ndarray, "t H W 3"]
SPLIT = "test"
"""Faces, voices and languages that neither training nor its validation has seen."""


@dataclass(frozen=True)
class Case:
    """A clip with its truth, and a voice that may be another's than the clip's own."""

    clip: Clip
    folder: Path

    def request(self, seed: int = 0, voice: np.ndarray | None = None, prompt: str | None = None) -> AvatarRequest:
        """The files that a user would give."""
        self.folder.mkdir(parents=True, exist_ok=True)
        image, sound = self.folder / f"{self.clip.seed}.png", self.folder / f"{self.clip.seed}-{voice is None}.wav"
        Image.fromarray(self.clip.portrait(SIZE)).save(image)
        write_wav(sound, self.clip.audio if voice is None else voice)
        wanted = self.clip.prompt if prompt is None else prompt
        return AvatarRequest(image, (sound,), wanted, SIZE[0] * SIZE[1], seed)

    def truth(self) -> Frames:
        return self.clip.frames(SIZE)


def cases(folder: Path, count: int, seconds: float, first: int = 0, **given: Any) -> list[Case]:
    """`count` held-out people who speak."""
    given = {"sound": "speech"} | given
    return [Case(make_clip(first + n, seconds, split=SPLIT, **given), folder) for n in range(count)]


def write_wav(path: Path, pcm: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SPEECH_RATE)
        file.writeframes((np.clip(pcm, -1, 1) * 32767).astype("<i2").tobytes())


class Model:
    """The embedded model with some settings, loaded once and asked many times."""

    def __init__(self, overrides: Sequence[str]) -> None:
        config = compose("infer", [*overrides, "sink=none", "profile.memory=false"])
        self.run = assemble(config)

    def __call__(self, request: AvatarRequest) -> Frames:
        """All frames of the video of a request."""
        return np.concatenate([as_bytes(chunk.frames) for chunk in self.run.session.run(request)])

    def close(self) -> None:
        self.run.close()


def as_bytes(frames: torch.Tensor) -> Frames:
    """Frames [t, 3, H, W] in [-1, 1] as a video file would hold them."""
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
