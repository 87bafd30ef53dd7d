"""What a prompt may ask of a face, on top of any portrait: a mien, a light, a gesture; sentences that ask for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from liveavatar.metrics.toon_prompt import EMOTIONS, GESTURES, LIGHTS
from liveavatar.training.toon.motion import Motion
from liveavatar.types import FPS

SWING_HZ = 0.92
"""How often a head nods or is shaken in a second. It starts down, or to the right, with the clip: of swings that start
anywhere a model could draw nothing but their mean, which is none."""

SWINGS = {"nodding": ("nod", "y"), "shaking": ("turn", "x")}
"""What turns and what shifts in a head that swings."""

_MIENS: dict[str, dict[str, float]] = {
    "neutral": {},
    "happy": {"smile": 0.9, "brow": 0.25, "wide": -0.1},
    "sad": {"smile": -1.0, "frown": -0.9, "brow": 0.1, "gaze_y": 0.25},
    "surprised": {"brow": 1.0, "wide": 1.0},
    "angry": {"smile": -0.4, "frown": 1.0, "brow": -0.35, "wide": -1.0},
}
_WORDS = {
    "emotion": {
        "happy": ("happy", "cheerful", "joyful", "smiling", "delighted"),
        "sad": ("sad", "sorrowful", "unhappy", "gloomy", "melancholy"),
        "surprised": ("surprised", "astonished", "amazed"),
        "angry": ("angry", "furious", "annoyed", "cross"),
        "neutral": ("neutral", "serious", "composed"),
    },
    "light": {
        "warm": ("warm light", "golden light", "candlelight", "sunset light"),
        "blue": ("blue light", "cold light", "moonlight", "cool blue light"),
        "dim": ("dim light", "a dark room", "faint light"),
        "plain": ("daylight", "plain light", "studio light"),
    },
    "gesture": {
        "still": ("keeping still", "holding the head still", "motionless"),
        "nodding": ("nodding", "nodding in agreement", "nodding along"),
        "shaking": ("shaking the head", "shaking their head"),
        "calm": ("swaying gently", "moving gently"),
    },
}
_OPENINGS = (
    "A {mien}person is talking", "A portrait of a {mien}speaker", "A cartoon of a {mien}person who speaks",
    "Someone {mien}talks to the camera", "A {mien}face speaks to the viewer", "A {mien}presenter tells a story",
)  # fmt: skip
_TAILS = (
    "", "Head and shoulders.", "Looking at the viewer.", "Flat drawing, soft shading.", "The background is simple.",
    "The lips follow the voice.", "A friendly drawing.",
)  # fmt: skip


@dataclass(frozen=True)
class Attributes:
    """What can be asked for: one of `EMOTIONS`, one of `LIGHTS`, one of `GESTURES`."""

    emotion: str = "neutral"
    light: str = "plain"
    gesture: str = "calm"

    def __post_init__(self) -> None:
        for name, choices in (("emotion", EMOTIONS), ("light", tuple(LIGHTS)), ("gesture", GESTURES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not known. Choose among: {', '.join(choices)}.")

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Attributes:
        return cls(
            str(rng.choice(EMOTIONS, p=(0.28, 0.18, 0.18, 0.18, 0.18))),
            str(rng.choice(tuple(LIGHTS), p=(0.46, 0.18, 0.18, 0.18))),
            str(rng.choice(GESTURES, p=(0.55, 0.15, 0.15, 0.15))),
        )


def write_prompt(asked: Attributes, rng: np.random.Generator) -> str:
    """A sentence or two that ask for it; what is usual is often left unsaid."""

    def word(kind: str, usual: str) -> str:
        value = getattr(asked, kind)
        return "" if value == usual and rng.random() < 0.6 else str(rng.choice(_WORDS[kind][value]))

    mien, light, gesture = word("emotion", "neutral"), word("light", "plain"), word("gesture", "calm")
    text = str(rng.choice(_OPENINGS)).format(mien=f"{mien} " if mien else "")
    parts = [gesture, f"in {light}" if light else ""]
    if rng.random() < 0.5:
        parts.reverse()
    text = ", ".join([text, *filter(None, parts)]) + "."
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return f"{text} {rng.choice(_TAILS)}".strip()


def read_prompt(prompt: str) -> Attributes:
    """What a prompt asks for; what it does not name is as usual. The longest words that match win."""
    found = {}
    for kind, values in _WORDS.items():
        matches = [
            (len(word), value)
            for value, words in values.items()
            for word in words
            if re.search(rf"\b{re.escape(word)}\b", prompt.lower())
        ]
        if matches:
            found[kind] = max(matches)[1]
    return Attributes(**found)


def act(motion: Motion, asked: Attributes, rng: np.random.Generator) -> Motion:
    """The same motion in the mien, light and gesture that are asked for."""
    frames = len(motion)
    t = np.arange(frames) / FPS
    curves: dict[str, np.ndarray] = {}
    strength = float(rng.uniform(0.85, 1.1)) * (1 + 0.06 * np.sin(2 * np.pi * t / 3.7 + rng.uniform(0, 6)))
    for name, value in _MIENS[asked.emotion].items():
        curves[name] = np.clip(getattr(motion, name) + value * strength, -1.1, 1.1)
    if asked.gesture == "still":
        for name in ("x", "y", "roll", "turn", "nod"):
            curves[name] = getattr(motion, name) * 0.12
    elif asked.gesture in SWINGS:
        motion = swung(motion, asked.gesture)
    return motion.with_(light=np.array(LIGHTS[asked.light], np.float32), **curves)


def swung(motion: Motion, gesture: str, begun: float = 0.0) -> Motion:
    """The same with a head that nods or is shaken, one of `SWINGS`; it began `begun` seconds before the first frame."""
    turn, shift = SWINGS[gesture]
    swing = np.sin(2 * np.pi * SWING_HZ * (begun + np.arange(len(motion)) / FPS))
    turned, shifted = (0.5 * getattr(motion, name) for name in (turn, shift))
    return motion.with_(**{turn: turned + 0.95 * swing, shift: shifted + 0.05 * swing})
