"""Meters on a stream: one sink that prepares each piece of video once and shows it to all of them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from liveavatar.metrics.about import About, skipped
from liveavatar.metrics.picture import contrast, grey, sharpness
from liveavatar.metrics.voice import band_energy
from liveavatar.types import StreamInfo, VideoChunk

log = logging.getLogger(__name__)


@dataclass
class Piece:
    """A piece of video as meters see it. `start` is the number of its first frame; no sound is an empty `audio`.

    `reference` are the frames of another video beside it, of the same size (`resized` says whether they had another);
    None where there is none, fewer than `frames` where it ends.
    """

    frames: UInt8[np.ndarray, "t H W 3"]
    audio: Float[np.ndarray, " samples"]
    audio_rate: int
    start: int
    fps: float
    reference: UInt8[np.ndarray, "r H W 3"] | None = None
    resized: bool = False

    @cached_property
    def grey(self) -> Tensor:
        """Luma, 0 to 255, [t, H, W]."""
        return grey(self.frames)

    @cached_property
    def luma(self) -> np.ndarray:
        """Its mean over the picture, of every frame."""
        return self.grey.mean((1, 2)).double().numpy()

    @cached_property
    def sharpness(self) -> np.ndarray:
        return sharpness(self.grey)

    @cached_property
    def contrast(self) -> np.ndarray:
        return contrast(self.grey)

    @cached_property
    def energy(self) -> np.ndarray:
        """`band_energy` of every frame."""
        return band_energy(self.audio, self.audio_rate or 1, len(self.frames), self.fps)


class Meter(Protocol):
    """Whoever measures a stream, piece by piece, in memory that does not grow with its length."""

    abouts: tuple[About, ...]

    def see(self, piece: Piece) -> None: ...

    def values(self) -> dict[str, float | str]:
        """A number or `skipped: <reason>` for each of `abouts`, of all that was seen so far."""
        ...


class Suite:
    """A sink that shows each chunk to all meters. One that fails is left out with its reason; the others go on.

    Args:
        meters: by name. Fresh ones: a suite measures one stream.
    """

    def __init__(self, meters: Mapping[str, Meter]) -> None:
        self.meters = dict(meters)
        self.failures: dict[str, str] = {}
        self.seconds = 0.0

    @property
    def abouts(self) -> dict[str, About]:
        """The record of every value that `values` can give, by name."""
        return {about.name: about for meter in self.meters.values() for about in meter.abouts}

    def open(self, info: StreamInfo) -> None:
        """Nothing to prepare."""

    def write(self, chunk: VideoChunk) -> None:
        began = time.perf_counter()
        if self.meters and len(chunk.frames):
            self.see(Piece(chunk.pixels().numpy(), chunk.audio, chunk.audio_rate, chunk.start, chunk.fps))
        self.seconds += time.perf_counter() - began

    def see(self, piece: Piece) -> None:
        """Show one piece to all meters that still work."""
        for name, meter in self.meters.items():
            if name in self.failures:
                continue
            try:
                meter.see(piece)
            except Exception as error:  # a meter's trouble never costs a run
                self.failures[name] = f"the meter failed ({error})"
                log.warning("metrics.meters.%s failed and is left out from here on: %s", name, error, exc_info=error)

    def close(self) -> None:
        """Nothing to finish."""

    def values(self) -> dict[str, Any]:
        """All metrics by name; what could not be measured is `skipped: <reason>`, never a number."""
        found: dict[str, Any] = {}
        for name, meter in self.meters.items():
            if name in self.failures:
                found |= skipped(self.failures[name], meter.abouts)
                continue
            for key, value in meter.values().items():
                if isinstance(value, float) and math.isnan(value):
                    value = "skipped: too little was seen"
                found[key] = value
        return found
