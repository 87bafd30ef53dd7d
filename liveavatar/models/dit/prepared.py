"""Conditioning made ready before the cells that need it.

Keys and values of the words, the timestep table, what a voice does to the injectors: none of it depends on the video.
It is made once per prompt, run or block, and the weights that make it stay out of the hot loop. Matrix products have
the shapes that they have inside a cell, one after another, and so the same bits.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor


class Prepared:
    """A piece of conditioning, ready: tensors by name and number, in rooms that are made once and written over.

    `kind` names the parts of units that have a share in it (see `Unit.cold`).
    """

    kind: ClassVar[str]

    def __init__(self) -> None:
        self._rooms: dict[tuple[str, int], Tensor] = {}

    def keep(self, name: str, value: Tensor, number: int = 0) -> None:
        """Copy a value into its room."""
        room = self._rooms.get((name, number))
        if room is None or room.shape != value.shape:
            self._rooms[name, number] = value.clone(memory_format=torch.contiguous_format)
        else:
            room.copy_(value)

    def take(self, name: str, number: int = 0) -> Tensor:
        return self._rooms[name, number]

    def keep_pair(self, number: int, pair: tuple[Tensor, Tensor]) -> None:
        """Keys and values of one attention."""
        for name, value in zip(("k", "v"), pair, strict=True):
            self.keep(name, value, number)

    def pair(self, number: int) -> tuple[Tensor, Tensor]:
        return self.take("k", number), self.take("v", number)

    @property
    def tensors(self) -> list[Tensor]:
        return list(self._rooms.values())

    @property
    def nbytes(self) -> int:
        return sum(room.nbytes for room in self._rooms.values())


class PreparedSteps(Prepared):
    """The time embedding [1, 1, d] of each timestep of a run, and its projection [1, 1, 6, d]."""

    kind = "steps"

    def __init__(self, timesteps: Sequence[float]) -> None:
        super().__init__()
        self.timesteps = tuple(timesteps)

    def row(self, timestep: float) -> tuple[Tensor, Tensor]:
        number = self.timesteps.index(timestep)
        return self.take("time", number), self.take("modulation", number)


class PreparedPrompt(Prepared):
    """A prompt: its embedding `text` [1, words, d] and, by layer, keys and values [1, words, heads, channels].

    `source` is what it is made from, the text encoder's output.
    """

    kind = "prompt"

    def __init__(self, source: Float[Tensor, "1 words text_dim"]) -> None:
        super().__init__()
        self.source = source


class PreparedVoice(Prepared):
    """The voices of a block: `voice` [a, f, 5, d] and `tone` [a, f, d] in float32; by injector, `modulation`
    [a * f, 2d] of its queries, and keys and values [a * f, 5, heads, channels].

    `source` holds the speech features [a, L, c, t] that they are made from; None where voice and tone are given.
    """

    kind = "voice"

    def __init__(self) -> None:
        super().__init__()
        self.source: Tensor | None = None
        self.frames = 0


KINDS = (PreparedSteps.kind, PreparedPrompt.kind, PreparedVoice.kind)
"""In the order in which they are made ready."""
