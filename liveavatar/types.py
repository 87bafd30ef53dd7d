"""What the layers hand to one another: requests, conditioning, chunks of video, and the seams between parts.

Letters used in shapes throughout the package:

    b   batch                     a   actors (speakers)           L   layers of the speech encoder
    f   latent frames             n   tokens of one latent frame  d   model width
    h w latent height and width   H W picture height and width    t   video frames
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:  # torch costs seconds to import; this module is imported by everything
    import numpy as np
    from jaxtyping import Float
    from torch import Tensor

FPS = 25
"""Video frames per second of the model."""

LATENT_STRIDE = 4
"""Video frames per latent frame of the Wan VAE (the first latent of a stream is one frame)."""

BLOCK_LATENTS = 3
"""Latent frames denoised together: one block."""

BLOCK_FRAMES = BLOCK_LATENTS * LATENT_STRIDE
"""Video frames of a block: 12, which is 0.48 s."""

SPEECH_RATE = 16_000
"""Samples per second of the sound that the speech encoder hears."""


@dataclass(frozen=True)
class AvatarRequest:
    """What a user asks for: one picture, one voice (or several, with masks), one prompt.

    `size` is an area in pixels; the picture keeps its own aspect. `max_seconds` cuts the voice, None keeps all of it.
    `masks` holds one picture or folder of pictures per speaker, white where the speaker is.
    """

    image: Path
    audio: tuple[Path, ...]
    prompt: str
    size: int
    seed: int = 0
    max_seconds: float | None = None
    pose: Path | None = None
    masks: tuple[Path, ...] = ()


@dataclass(frozen=True)
class StreamInfo:
    """What is known of a stream before its first frame: what a sink needs to open a file.

    `total_frames` is None for a live stream. `audio_rate` is 0 when the stream is silent by nature.
    """

    width: int
    height: int
    fps: int
    audio_rate: int
    total_frames: int | None
    total_blocks: int | None = None


@dataclass
class VideoChunk:
    """One finished piece of video with the sound under it.

    Attributes:
        index: number of the block that ended this piece, from 0.
        start: number of its first video frame in the stream.
        frames: pictures on the host, float32 in [-1, 1].
        audio: the voice under these frames, mono float32 in [-1, 1], `audio_rate` samples per second.
        latents: what the VAE decoded, per block number (one entry, or a whole clip of them in clipwise decoding).
        timings: seconds spent on this piece, by part (`denoise`, `decode`, `wall`).
    """

    index: int
    start: int
    frames: Float[Tensor, "t 3 H W"]
    audio: Float[np.ndarray, " samples"]
    audio_rate: int
    fps: int = FPS
    latents: dict[int, Float[Tensor, "16 f h w"]] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)

    def pixels(self) -> Tensor:
        """The frames as uint8 [t, H, W, 3]: clamped, then truncated as the reference writes them, not rounded."""
        import torch

        levels = (self.frames.float().clamp(-1, 1) + 1) / 2 * 255
        return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class Sink(Protocol):
    """Whoever consumes finished video: a file, a page, a meter. `close` is called once, also after a failure."""

    def open(self, info: StreamInfo) -> None: ...

    def write(self, chunk: VideoChunk) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class BlockAudio(Protocol):
    """Speech features of a stream, asked for block by block (see `models.speech`)."""

    def block(self, index: int) -> Float[Tensor, "a L c t"]:
        """The features of the 12 video frames of block `index`, from 0."""
        ...
