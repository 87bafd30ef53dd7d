"""A source of clips that costs nothing: a coloured disc whose mouth opens with the loudness of a tone."""

from __future__ import annotations

import numpy as np

from liveavatar.training.sources import Look, Talk, Told, Wish
from liveavatar.types import FPS, SPEECH_RATE


class Discs:
    """Clips of `seconds`; person and tone of a number are functions of it."""

    def __init__(
        self,
        identities: int = 4,
        seconds: float = 1.4,
        held_out: int = 1,
        sounds: str | None = None,
        first: int = 0,
        gestures: float = 0.0,
        beards: float = 0.0,
    ) -> None:
        self.kept, self.seconds = range(first, first + identities), seconds
        self.held_out = range(1000, 1000 + held_out)

    @property
    def token(self) -> str:
        return f"discs {self.seconds}"

    def look(self, number: int, frames: int, size: tuple[int, int]) -> Look:
        opening = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frames) / (5 + number % 4))
        return Look(_drawn(number, opening, size), np.tile(np.float32([0.35, 0.55, 0.65, 0.85]), (frames, 1)))

    def talk(self, number: int, size: tuple[int, int]) -> Talk:
        frames = round(self.seconds * FPS)
        look = self.look(number, frames, size)
        time = np.arange(frames * SPEECH_RATE // FPS) / SPEECH_RATE
        loud = 0.5 - 0.5 * np.cos(2 * np.pi * time * FPS / (5 + number % 4))
        sound = (0.3 * loud * np.sin(2 * np.pi * 220 * time)).astype(np.float32)
        opening = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frames) / (5 + number % 4))
        curves = np.stack([opening, 0 * opening, 0 * opening], axis=1).astype(np.float32)
        return Talk(look.frames, sound, f"person {number}", _drawn(number, np.zeros(1), size)[0], look.mouth, curves)

    def tell(self, number: int) -> Told:
        talk = self.talk(number, (16, 16))
        assert talk.curves is not None
        return Told(talk.sound, talk.curves)

    choices = {"colour": ("red", "green"), "size": ("small", "large", "huge")}  # noqa: RUF012 - a source's own

    def wish(self, rng: np.random.Generator) -> Wish:
        places = tuple(int(rng.integers(len(options))) for options in self.choices.values())
        said = [options[place] for options, place in zip(self.choices.values(), places, strict=True)]
        return Wish(f"A {said[1]} disc in {said[0]}.", places)

    def reword(self, prompt: str, rng: np.random.Generator) -> str:
        return f"{prompt}, told for the {rng.integers(100)}th time"


class WordlessDiscs(Discs):
    """They cannot say a prompt in other words."""

    reword = None


def _drawn(number: int, opening: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(number)
    back, skin = rng.integers(0, 256, (2, 3))
    y, x = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]), indexing="ij")
    face = (x**2 + y**2 < 0.7)[None, ..., None]
    lips = ((x / 0.3) ** 2 + ((y - 0.4)[None] / (0.02 + 0.2 * opening[:, None, None])) ** 2 < 1)[..., None]
    return np.where(lips, 20, np.where(face, skin, back)).astype(np.uint8)
