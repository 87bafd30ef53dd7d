"""Video files as input (pose videos: semantics, 1.4), and what a file really holds."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.container import InputContainer
from jaxtyping import Float, UInt8
from torch import Tensor

from liveavatar.media.image import centre_crop, resized_shape
from liveavatar.types import FPS

KEY = "request.pose"


def read_video(
    path: str | Path, fps: int = FPS, limit: int | None = None, key: str = KEY
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The frames of a video from its start, every n-th of them: n = max(1, round(fps of the file / `fps`)).

    The file is checked at once, the frames are decoded as they are asked for, at most `limit` of them. A file
    that breaks off yields what can be decoded.

    Raises:
        ValueError: naming `key`, when the file is missing, a folder, no video, or without a single frame.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{key}={path} is a folder. Type the path of one video in it.")
    if not path.is_file():
        raise ValueError(f"{key}={path} does not exist. Check the path; a relative one starts at {Path.cwd()}.")
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{key}={path} is not a video ({error.strerror}). Give an MP4 or WebM file.") from error
    name = container.format.name
    if not container.streams.video or name.endswith("_pipe") or name in ("tty", "image2"):
        container.close()
        raise ValueError(f"{key}={path} holds no moving pictures. Give an MP4 or WebM file.")
    frames = _sampled(container, fps, limit)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{key}={path} holds no frame that can be decoded. Export or download it again.")
    return _chain(first, frames)


def _chain(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest


def _sampled(container: InputContainer, fps: int, limit: int | None) -> Iterator[np.ndarray]:
    with container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate or Fraction(fps)
        interval = max(1, round(float(rate) / fps))
        end = None if limit is None else limit * interval
        try:
            for number, frame in enumerate(container.decode(stream)):
                if number == end:
                    return
                if number % interval == 0:
                    yield frame.to_ndarray(format="rgb24")
        except (av.FFmpegError, OSError):
            return


def fit_frame(frame: np.ndarray | Tensor, height: int, width: int, fill: float = -1.0) -> Float[Tensor, "3 H W"]:
    """One frame (uint8 [h, w, 3]) as float32 in [-1, 1] of the working size.

    Shorter edge to min(H, W) by torch's antialiased bilinear resize, centre cut, `fill` where the frame is too small
    (semantics, 1.4).
    """
    frame = torch.as_tensor(frame)
    x = frame.permute(2, 0, 1)[None].float() / 255 * 2 - 1
    shape = resized_shape(frame.shape[0], frame.shape[1], min(height, width))
    if shape != tuple(frame.shape[:2]):
        x = F.interpolate(x, size=shape, mode="bilinear", align_corners=False, antialias=True)
    return centre_crop(x[0], height, width, fill)


def probe(path: str | Path) -> dict[str, Any]:
    """What is really in a file, found by decoding all of it.

    Returns:
        `frames`, `fps`, `width`, `height`, `video_seconds`, `audio_seconds`, `audio_rate`; what a file
        without pictures or without sound lacks is 0. Seconds count decoded frames and samples, not what the
        header claims.

    Raises:
        ValueError: when the file cannot be opened as a video or a sound.
    """
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path} cannot be opened as a video or a sound ({error.strerror}).") from error
    with container:
        video = next(iter(container.streams.video), None)
        audio = next(iter(container.streams.audio), None)
        frames, samples = _count(container, [stream for stream in (video, audio) if stream is not None])
        fps = float(video.average_rate or video.guessed_rate or 0) if video else 0.0
        rate = audio.codec_context.sample_rate if audio else 0
        return {
            "frames": frames,
            "fps": fps,
            "width": video.codec_context.width if video else 0,
            "height": video.codec_context.height if video else 0,
            "video_seconds": frames / fps if fps else 0.0,
            "audio_seconds": samples / rate if rate else 0.0,
            "audio_rate": rate,
        }


def _count(container: InputContainer, streams: list[Any]) -> tuple[int, int]:
    """Decoded video frames and audio samples; a file that breaks off counts up to there."""
    frames = samples = 0
    try:
        for frame in container.decode(*streams) if streams else ():
            if isinstance(frame, av.AudioFrame):
                samples += frame.samples
            else:
                frames += 1
    except (av.FFmpegError, OSError):
        pass
    return frames, samples
