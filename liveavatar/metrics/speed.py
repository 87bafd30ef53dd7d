"""How fast a run was: frames per second, time to the first frame, seconds per second; cold and warm told apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from liveavatar.types import FPS, StreamInfo, VideoChunk


def speed_metrics(
    frames: Sequence[int], denoise: Sequence[float], decode: Sequence[float], first_s: float, total_s: float
) -> dict[str, float]:
    """Metrics of a run from its pieces of video.

    `frames` per piece, seconds of `denoise` and `decode` per piece; `first_s` from the request to the first frames,
    `total_s` from the request to the last ones. Loading the models is no part of either. Higher is better for `fps_*`,
    lower for the rest; an `rtf` (seconds of work per second of video) below 1 is faster than real time. The first
    piece is cold: it pays for everything that happens once.
    """
    shown = sum(frames)
    if not shown or total_s <= 0:
        return {}
    found = {
        "speed/fps_e2e": shown / total_s,
        "speed/fps_denoise": shown / max(sum(denoise), 1e-9),
        "speed/ttff_s": first_s,
        "speed/rtf": total_s * FPS / shown,
        "speed/piece_s_cold": denoise[0] + decode[0],
        "speed/denoise_s": sum(denoise),
        "speed/decode_s": sum(decode),
        "speed/total_s": total_s,
    }
    warm = [a + b for a, b in zip(denoise[1:], decode[1:], strict=True)]
    if warm:
        found["speed/piece_s_warm"] = statistics.median(warm)
    return found


class SpeedMeter:
    """A sink that times the pieces of video as they arrive. `began` is when the request was taken."""

    def __init__(self) -> None:
        self.began = self.first = self.last = time.perf_counter()
        self.frames: list[int] = []
        self.denoise: list[float] = []
        self.decode: list[float] = []

    def begin(self) -> None:
        """Start the clock: the models are loaded, the request is about to be read."""
        self.began = time.perf_counter()

    def open(self, info: StreamInfo) -> None:
        pass

    def write(self, chunk: VideoChunk) -> None:
        self.last = time.perf_counter()
        if not self.frames:
            self.first = self.last
        self.frames.append(len(chunk.frames))
        self.denoise.append(chunk.timings["denoise"])
        self.decode.append(chunk.timings["decode"])

    def close(self) -> None:
        pass

    def values(self) -> dict[str, float]:
        return speed_metrics(self.frames, self.denoise, self.decode, self.first - self.began, self.last - self.began)
