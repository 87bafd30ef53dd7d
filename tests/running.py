"""Small inputs and the micro model, for tests of sessions and of whole runs."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from liveavatar.assemble import assemble
from liveavatar.config import compose
from liveavatar.intake import Parts, SpeechSettings
from liveavatar.sampling.conditioning import RolloutSettings
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.session import AvatarSession
from liveavatar.types import AvatarRequest, VideoChunk

SMALL = ("model=micro", "fabric.threads=1", "fabric.accelerator=cpu", "sampler.steps=1", "request.size=64*64")
CPU = torch.device("cpu")


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (64, 64)) -> Path:
    """A blurred random picture: the kind is told by the suffix."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR).save(path)
    return path


def speech(seconds: float, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    """Noise that swells and fades, in [-1, 1]: as good as a voice for a random model."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(time)) * 0.2
    return (noise * np.sin(2 * np.pi * (1 + seed) * time)).clip(-1, 1)


def write_wav(path: Path, sound: np.ndarray, rate: int = 16_000) -> Path:
    """Sound [samples] or [samples, channels] as a 16-bit WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1 if sound.ndim == 1 else sound.shape[1], 2, rate, len(sound), "NONE", ""))
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return path


@functools.cache
def micro_parts(dtype: torch.dtype = torch.float32) -> Parts:
    """All models of `model=micro` with random weights; sessions share them."""
    return fresh_parts(dtype)


def fresh_parts(dtype: torch.dtype = torch.float32) -> Parts:
    """The same models, built anew as a run builds them."""
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    with tempfile.TemporaryDirectory() as folder:
        kept = [f"precision={precision}", "memory.text=resident", f"output.dir={folder}"]
        return assemble(compose("infer", [*SMALL, *kept])).session.parts


def micro_session(
    steps: int = 1,
    speech: SpeechSettings | None = None,
    dtype: torch.dtype = torch.float32,
    shows: bool = True,
    **rollout: Any,
) -> AvatarSession:
    settings = RolloutSettings(**rollout)
    listening = speech or SpeechSettings("window")
    return AvatarSession(micro_parts(dtype), EulerSampler(steps), settings, listening, CPU, shows=shows)


def small_request(folder: Path, seconds: float = 1.0, **changes: Any) -> AvatarRequest:
    """A picture of 64 x 64 and a second of voice, made in `folder`."""
    asked: dict[str, Any] = {"prompt": "A person speaks.", "size": 64 * 64, "seed": 0}
    if "image" not in changes:
        asked["image"] = picture(folder / "me.png")
    if "audio" not in changes:
        asked["audio"] = (write_wav(folder / f"voice-{seconds}.wav", speech(seconds)),)
    return AvatarRequest(**(asked | changes))


def latents_of(chunks: list[VideoChunk]) -> torch.Tensor:
    """[blocks, 16, 3, h, w], in the order of the blocks."""
    found = {number: latents for chunk in chunks for number, latents in chunk.latents.items()}
    return torch.stack([found[number] for number in sorted(found)])


def frames_of(chunks: list[VideoChunk]) -> torch.Tensor:
    return torch.cat([chunk.frames for chunk in chunks])


def command(*arguments: str, module: str = "liveavatar.infer") -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def run_command(*arguments: str, cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    environment = os.environ | {"HYDRA_FULL_ERROR": ""} | more.pop("env", {})
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False, **more
    )
