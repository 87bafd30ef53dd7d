"""Whether a drawn face does what its prompt asked: mien, light and gesture, read from the picture alone."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from liveavatar.metrics import toon
from liveavatar.types import FPS

EMOTIONS = ("neutral", "happy", "sad", "surprised", "angry")
GESTURES = ("calm", "still", "nodding", "shaking")
LIGHTS: dict[str, tuple[float, float, float]] = {
    "plain": (1.0, 1.0, 1.0),
    "warm": (1.14, 0.96, 0.72),
    "blue": (0.76, 0.94, 1.2),
    "dim": (0.66, 0.66, 0.7),
}
"""What each light multiplies red, green and blue behind the figure by."""

Frames = UInt8[np.ndarray, "t H W 3"]
Portrait = UInt8[np.ndarray, "H W 3"]


def light_gain(frames: Frames, portrait: Portrait) -> Float[np.ndarray, " 3"]:
    """What the background's red, green and blue are multiplied by, against the portrait."""
    height, width = portrait.shape[:2]
    edge, low = max(2, round(0.09 * width)), round(0.5 * height)

    def border(pixels: np.ndarray) -> np.ndarray:
        sides = [pixels[..., :low, :edge, :], pixels[..., :low, -edge:, :]]
        return np.median(np.concatenate([side.reshape(-1, 3) for side in sides]), axis=0)

    return (border(frames) + 1) / (border(portrait) + 1)


def light(frames: Frames, portrait: Portrait) -> str:
    """Which of `LIGHTS` the scene is in."""
    gain = np.log(light_gain(frames, portrait))
    return min(LIGHTS, key=lambda name: float(np.square(gain - np.log(LIGHTS[name])).sum()))


def gesture(frames: Frames) -> str:
    """Which of `GESTURES` the head makes; a second at least."""
    path = toon.sway(frames)
    path = path - path.mean(0)
    spectrum = np.abs(np.fft.rfft(path * np.hanning(len(path))[:, None], axis=0)) / len(path) * 4
    rate = np.fft.rfftfreq(len(path), 1 / FPS)
    across, down = spectrum[(rate > 0.62) & (rate < 1.4)].max(0, initial=0)
    if max(across, down) > 0.055:
        return "nodding" if down > across else "shaking"
    return "still" if np.hypot(*path.std(0)) < 0.012 else "calm"


_BROWS = {"inner": ((-0.36, -0.14), (0.14, 0.36)), "outer": ((-0.6, -0.38), (0.38, 0.6))}


def mien(frames: Frames, portrait: Portrait) -> Float[np.ndarray, " 3"]:
    """How far the corners of the mouth, the inner and the outer halves of the brows are raised against the portrait.

    In face units, medians over some 25 frames.
    """
    frames = frames[:: max(1, len(frames) // 25)]
    own, rest = toon.mouth(frames), toon.mouth(portrait[None])
    raised = float(np.median(own.corners[own.found]) - rest.corners[0]) if own.found.any() else 0.0
    head = toon.sway(frames, portrait)
    brows = []
    for halves in _BROWS.values():
        up = [toon.risen(frames, portrait, (left, -0.46, right, -0.18), head, 0.2) for left, right in halves]
        brows.append(float(np.median(np.mean(up, axis=0))))
    return np.array([raised, *brows])


_MIENS = {
    "neutral": (0.01, 0.0, 0.0),
    "happy": (0.06, 0.03, 0.02),
    "sad": (-0.064, 0.05, 0.0),
    "surprised": (0.01, 0.085, 0.07),
    "angry": (-0.027, -0.06, -0.02),
}
"""What `mien` reads of each, medians over many faces; the brows are read less surely than the mouth."""
_SPREAD = (0.014, 0.04, 0.08)


def emotion(frames: Frames, portrait: Portrait) -> str:
    """Which of `EMOTIONS` the face shows: the nearest in mouth corners and brows."""
    read = mien(frames, portrait)
    return min(EMOTIONS, key=lambda name: float(np.square((read - _MIENS[name]) / _SPREAD).sum()))
