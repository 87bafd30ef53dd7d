"""What moves in a face, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Float

from liveavatar.types import FPS

Curve = Float[np.ndarray, " t"]


@dataclass(frozen=True)
class Motion:
    """Curves of equal length at 25 fps, float32; a neutral face with its mouth shut is all zeros.

    The mouth: `opening` 0 to 1, `width` -1 to 1, `rounding`, `teeth` and `tongue` 0 to 1. The eyes: `blink` 0 open to 1
    shut, `gaze_x`, `gaze_y` and `wide` -1 (squint) to 1. The head: `x`, `y` in face units, `roll` in radians clockwise,
    `turn` and `nod` -1 to 1. The mien: `brow` -1 to 1 (up), `frown` -1 (sorrow) to 1 (anger), `smile` -1 to 1.
    `light` [t, 3] multiplies red, green and blue of the scene: in full behind the figure, less on it.
    """

    opening: Curve
    width: Curve
    rounding: Curve
    teeth: Curve
    tongue: Curve
    blink: Curve
    gaze_x: Curve
    gaze_y: Curve
    wide: Curve
    x: Curve
    y: Curve
    roll: Curve
    turn: Curve
    nod: Curve
    brow: Curve
    frown: Curve
    smile: Curve
    light: Float[np.ndarray, "t 3"]

    @classmethod
    def neutral(cls, frames: int, **curves: np.ndarray | float) -> Motion:
        """A face at rest; `curves` replace single ones, numbers stand for constants.

        Raises:
            ValueError: for a curve that does not exist or is not as long as the others.
        """
        names = [field.name for field in fields(cls)]
        for name in curves:
            if name not in names:
                raise ValueError(f"A motion has no curve {name!r}. Choose among: {', '.join(names)}.")
        filled = {}
        for name in names:
            shape = (frames, 3) if name == "light" else (frames,)
            value = np.asarray(curves.get(name, 1.0 if name == "light" else 0.0), np.float32)
            if value.ndim == len(shape) and value.shape[0] != frames:
                raise ValueError(
                    f"The curve {name!r} has {value.shape[0]} frames, the motion {frames}: make them equal."
                )
            filled[name] = np.array(np.broadcast_to(value, shape))
        return cls(**filled)

    def __len__(self) -> int:
        return len(self.opening)

    def __getitem__(self, part: slice) -> Motion:
        return Motion(**{field.name: getattr(self, field.name)[part] for field in fields(self)})

    def with_(self, **curves: np.ndarray | float) -> Motion:
        """The same with other curves."""
        fresh = Motion.neutral(len(self), **curves)
        return replace(self, **{name: getattr(fresh, name) for name in curves})


BLINK = np.array([0.45, 1.0, 1.0, 0.7, 0.4, 0.15], np.float32)
"""Lids that shut and open again, frame by frame: down fast, up slower."""


def slow_noise(rng: np.random.Generator, frames: int, period: float, fps: int = FPS) -> Curve:
    """Smooth noise of about unit variance whose waves last `period` seconds and more: a few slow sines.

    Its phases are drawn once, so that a longer clip of the same seed begins like the shorter one.
    """
    t = np.arange(frames) / fps
    waves = period * np.array([1.0, 1.63, 2.71, 4.3])
    phases, gains = rng.uniform(0, 2 * np.pi, 4), np.array([0.45, 0.7, 0.8, 0.7])
    return (gains @ np.sin(2 * np.pi * t / waves[:, None] + phases[:, None])).astype(np.float32)


def shut_at(shut: Curve, frame: int) -> None:
    """Write one blink from that frame on over what the lids do already."""
    part = shut[frame : frame + len(BLINK)]
    np.maximum(part, BLINK[: len(part)], out=part)


def blinks(rng: np.random.Generator, frames: int, fps: int = FPS) -> Curve:
    """Lids that shut 10 to 25 times a minute, by no rule."""
    shut = np.zeros(frames, np.float32)
    gap = 60 / rng.uniform(13, 20)
    at = rng.uniform(0.15, 1.0) * gap
    while at * fps < frames:
        shut_at(shut, int(at * fps))
        at += gap * rng.uniform(0.65, 1.35)
    return shut


def gazes(rng: np.random.Generator, frames: int, fps: int = FPS) -> tuple[Curve, Curve]:
    """Eyes that rest on the viewer and now and then glance aside, in jumps of two frames."""
    x, y = np.zeros(frames, np.float32), np.zeros(frames, np.float32)
    at = 0.0
    while at * fps < frames:
        stay = rng.uniform(0.8, 3.2)
        aside = rng.random() < 0.35
        spot = rng.normal(0, (0.42, 0.2)) if aside else rng.normal(0, (0.07, 0.05))
        start, end = int(at * fps), int((at + stay) * fps)
        x[start:end], y[start:end] = np.clip(spot, -0.8, 0.8)
        at += stay * (0.5 if aside else 1.0)
    x[1:], y[1:] = (x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2
    return x, y


def idle(seed: int, frames: int, sway: float = 1.0) -> Motion:
    """A living face that says nothing: it blinks, looks about and sways; `sway` scales the head's movement."""
    rng = np.random.default_rng([abs(int(seed)), 7010])
    streams = rng.spawn(8)
    blink = blinks(streams[0], frames)
    gaze_x, gaze_y = gazes(streams[1], frames)
    periods = {"x": 2.6, "y": 3.1, "roll": 2.9, "turn": 2.3, "nod": 2.1, "brow": 2.0}
    gains = {"x": 0.035, "y": 0.018, "roll": 0.028, "turn": 0.3, "nod": 0.2}
    waves = {
        name: slow_noise(stream, frames, period) * (gains[name] * sway if name in gains else 0.1)
        for stream, (name, period) in zip(streams[2:], periods.items(), strict=True)
    }
    return Motion.neutral(frames, blink=blink, gaze_x=gaze_x, gaze_y=gaze_y, **waves)


def random_motion(seed: int, frames: int) -> Motion:
    """Babble without sound, with every shape of mouth, eyes and mien: what a VAE should see."""
    rng = np.random.default_rng([abs(int(seed)), 7011])
    opening = np.zeros(frames, np.float32)
    shapes = np.zeros((4, frames), np.float32)
    at = 0
    while at < frames:  # syllables of 3 to 9 frames, now and then a pause
        long = int(rng.integers(3, 10))
        if rng.random() < 0.2:
            at += long
            continue
        t = np.arange(long)
        bump = np.sin(np.pi * (t + 0.5) / long) ** 0.8 * rng.uniform(0.25, 1.0)
        part = slice(at, min(at + long, frames))
        opening[part] = bump[: part.stop - at]
        shapes[:, part] = np.stack([rng.uniform(-1, 1), max(0, rng.uniform(-1, 1)), rng.random(), rng.random() ** 2])[
            :, None
        ]
        at += long
    kernel = np.array([0.25, 0.5, 0.25])
    shapes = np.stack([np.convolve(np.pad(row, 1, "edge"), kernel, "valid") for row in shapes])
    mood = {name: float(rng.uniform(-1, 1)) * (rng.random() < 0.6) for name in ("brow", "frown", "smile", "wide")}
    warmth, dimness = rng.uniform(-0.26, 0.22), rng.uniform(0, 0.34) * (rng.random() < 0.5)
    light = 1 + (np.array([0.6, -0.1, -1.0]) * warmth - dimness) * (rng.random() < 0.35)
    rest = idle(seed, frames, sway=float(rng.uniform(0.5, 1.6)))
    return rest.with_(
        opening=opening, width=shapes[0], rounding=shapes[1], teeth=shapes[2], tongue=shapes[3],
        brow=np.clip(rest.brow + mood.pop("brow"), -1, 1), light=light.astype(np.float32), **mood,
    )  # fmt: skip
