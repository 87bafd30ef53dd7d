"""What a source of clips promises, and what it tells of a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8


@dataclass(frozen=True)
class Talk:
    """A person who speaks: frames at 25 a second, mono sound at 16 kHz, a prompt; in step with one another.

    `portrait` is the picture that a user would give of that person. `mouth` is as in `Look`; `curves` holds numbers
    that say how the mouth moves (opening, width, rounding); `eyes` are boxes as `mouth` is, around both eyes and their
    brows; `lids` are 0 open to 1 shut. All four are None where the source does not know.
    """

    frames: UInt8[np.ndarray, "t H W 3"]
    sound: Float[np.ndarray, " samples"]
    prompt: str
    portrait: UInt8[np.ndarray, "H W 3"]
    mouth: Float[np.ndarray, "t 4"] | None = None
    curves: Float[np.ndarray, "t k"] | None = None
    eyes: Float[np.ndarray, "t 4"] | None = None
    lids: Float[np.ndarray, " t"] | None = None


@dataclass(frozen=True)
class Look:
    """Pictures without sound; `mouth` is left, top, right, bottom of the mouth in shares of width and height."""

    frames: UInt8[np.ndarray, "t H W 3"]
    mouth: Float[np.ndarray, "t 4"]


class Numbered(Protocol):
    """Clips are told by number: `kept` are those to train on, `held_out` those to validate with."""

    @property
    def kept(self) -> Sequence[int]: ...

    @property
    def held_out(self) -> Sequence[int]: ...


@runtime_checkable
class Source(Numbered, Protocol):
    """Where clips come from. A number gives the same clip for ever.

    `token` tells this source from all others, so that what is cached of it is never taken for another's.
    """

    @property
    def token(self) -> str: ...

    def look(self, number: int, frames: int, size: tuple[int, int]) -> Look: ...

    def talk(self, number: int, size: tuple[int, int]) -> Talk: ...


@dataclass(frozen=True)
class Told:
    """Sound at 16 kHz, and the curves of the mouth that belongs to it at 25 frames a second."""

    sound: Float[np.ndarray, " samples"]
    curves: Float[np.ndarray, "t k"]


@runtime_checkable
class TellingSource(Numbered, Protocol):
    """A source that knows how mouths move, without drawing them."""

    def tell(self, number: int) -> Told: ...


@dataclass(frozen=True)
class Wish:
    """A prompt and what it asks for: for each choice of the source, the place of the option in its list."""

    prompt: str
    options: tuple[int, ...]


@runtime_checkable
class WishingSource(Protocol):
    """A source that writes prompts of which it knows the meaning. `choices` names each choice's options."""

    @property
    def choices(self) -> Mapping[str, tuple[str, ...]]: ...

    def wish(self, rng: np.random.Generator) -> Wish: ...


@runtime_checkable
class RewordingSource(Protocol):
    """A source that can say what a prompt of its own asks for in other words."""

    def reword(self, prompt: str, rng: np.random.Generator) -> str: ...
