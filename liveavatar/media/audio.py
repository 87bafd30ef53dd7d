"""Voices: any file that carries sound, as mono float32 at its own rate (semantics, 1.6, first point)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
import soxr
from av.container import InputContainer
from jaxtyping import Float

PLAYBACK_RATE = 48_000
"""Samples per second of the sound in video files."""

log = logging.getLogger(__name__)

# what the largest sample of an integer format stands for; 24-bit files are decoded to the top bits of int32
_FULL_SCALE = {"u8": 2**7, "s16": 2**15, "s32": 2**31, "s64": 2**63}


@dataclass(frozen=True)
class Voice:
    """Mono sound: float32 samples, nominally in [-1, 1], `rate` of them per second."""

    pcm: Float[np.ndarray, " samples"]
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.pcm) / self.rate

    def at(self, rate: int) -> Float[np.ndarray, " samples"]:
        """The samples at another rate (soxr HQ, as in the reference); the same array when it is equal."""
        if rate == self.rate:
            return self.pcm
        length = -(-len(self.pcm) * rate // self.rate)
        if length == 0:
            return np.zeros(0, np.float32)
        heard = soxr.resample(self.pcm, self.rate, rate, quality="HQ")[:length]
        return np.pad(heard, (0, length - len(heard))).astype(np.float32, copy=False)

    def cut(self, seconds: float | None) -> Voice:
        """At most the first `seconds`; None keeps everything."""
        if seconds is None:
            return self
        return Voice(self.pcm[: max(0, round(seconds * self.rate))], self.rate)

    def padded(self, min_seconds: float) -> Voice:
        """With silence after it, if it is shorter than `min_seconds`."""
        missing = round(min_seconds * self.rate) - len(self.pcm)
        return Voice(np.pad(self.pcm, (0, missing)), self.rate) if missing > 0 else self


def load_voice(path: str | Path, key: str = "request.audio") -> Voice:
    """Decode the first sound track of a file (WAV, MP3, M4A, FLAC, OGG, the sound of a video, ...) to mono.

    Channels are averaged. The native rate is kept. Of a damaged or cut-off file whatever can be decoded is
    used, with a warning in the log. Silence is a voice too.

    Raises:
        ValueError: naming `key`, when the file is missing, empty, no sound file, a video without sound, holds
            no samples, or holds samples that are not finite numbers.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{key}={path} is a folder. Type the path of one sound file in it.")
    if not path.is_file():
        raise ValueError(f"{key}={path} does not exist. Check the path; a relative one starts at {Path.cwd()}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{key}={path} is an empty file. Record or download the voice again.")
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise ValueError(
            f"{key}={path} is not a sound file ({error.strerror}). Give a WAV, MP3, M4A, FLAC or OGG file."
        ) from error
    with container:
        _check_tracks(container, path, key)
        rates, parts = set(), []
        for rate, samples in _decoded(container, path):
            rates.add(rate)
            parts.append(samples)
    pcm = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    return Voice(_checked(pcm, path, key), _single(rates, path, key))


def _check_tracks(container: InputContainer, path: Path, key: str) -> None:
    if container.streams.audio:
        return
    name = container.format.name
    if name.endswith("_pipe") or name in ("tty", "image2", "gif"):
        raise ValueError(f"{key}={path} is not a sound file. Give a WAV, MP3, M4A, FLAC or OGG file.")
    raise ValueError(f"{key}={path} is a video without sound. Give a file in which somebody speaks.")


def _decoded(container: InputContainer, path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Rate and mono float32 samples of each piece that decodes; the others are counted and logged."""
    track = container.streams.audio[0]
    broken = 0
    packets = container.demux(track)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                break
            frames = packet.decode()
        except (av.FFmpegError, OSError):
            broken += 1
            if broken > 1000:  # a demuxer that fails without moving on would never end
                break
            continue
        for frame in frames:
            yield frame.sample_rate, _mono(frame)
    if broken:
        log.warning("%s is damaged: %d pieces could not be decoded and were left out.", path, broken)


def _mono(frame: av.AudioFrame) -> Float[np.ndarray, " samples"]:
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    name = frame.format.name.removesuffix("p")
    mean = samples.mean(axis=0, dtype=np.float64)
    if name == "u8":
        mean -= 128
    return (mean / _FULL_SCALE.get(name, 1)).astype(np.float32)


def _checked(pcm: np.ndarray, path: Path, key: str) -> np.ndarray:
    if len(pcm) == 0:
        raise ValueError(f"{key}={path} holds no sound that can be decoded. Export or record it again.")
    if not np.isfinite(pcm).all():
        raise ValueError(f"{key}={path} holds samples that are NaN or infinite. Export it again, as 16-bit WAV.")
    return pcm


def _single(rates: set[int], path: Path, key: str) -> int:
    if len(rates) != 1 or min(rates) < 1:
        raise ValueError(f"{key}={path} changes its sample rate ({sorted(rates)}). Export it again at one rate.")
    return rates.pop()


def mix(voices: Sequence[Voice], length: Literal["shortest", "longest"] = "shortest") -> Voice:
    """All voices at once, for the ear: summed at the highest rate, limited to [-1, 1].

    `length` says what becomes of voices that differ in length: cut to the shortest (what a session of several
    speakers plays), or the shorter ones followed by silence.
    """
    if not voices:
        raise ValueError("There is no voice to mix: give at least one.")
    rate = max(voice.rate for voice in voices)
    heard = [voice.at(rate) for voice in voices]
    pick = min if length == "shortest" else max
    total = np.zeros(pick(len(pcm) for pcm in heard), np.float64)
    for pcm in heard:
        part = pcm[: len(total)]
        total[: len(part)] += part
    return Voice(np.clip(total, -1, 1).astype(np.float32), rate)
