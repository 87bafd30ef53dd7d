"""What travels through the units: the inputs of one cell (or of a sink prefill) and the state that units pass on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from liveavatar.models.dit.cache import CacheView
from liveavatar.models.dit.context import Grid
from liveavatar.models.dit.prepared import Prepared, PreparedPrompt, PreparedVoice
from liveavatar.models.dit.spread import Segment, Share, Whole, segments

Stretches = tuple[Callable[..., Any], ...]
"""Functions of a module and of tensors alone, without a trace beside what they return: what may be compiled as it is.

A module keeps them in `stretches` and calls what it finds there: those of its class, or others that compute the same.
"""


@dataclass(frozen=True)
class CellInput:
    """One block at one step: `latents` at the noise level of `timestep` (0 to 1000), and what it is conditioned on.

    `pose` has the shape of `latents`; `audio` holds the speech features of the block's 12 video frames for each actor
    (in a batch, which only training makes, one voice for each picture);
    `masks` says per actor where in the picture its voice acts (None: everywhere); `text` is padded to the text length.
    """

    latents: Float[Tensor, "b 16 f h w"]
    timestep: float
    pose: Float[Tensor, "b 16 f h w"]
    audio: Float[Tensor, "a L c t"]
    text: Float[Tensor, "b words text_dim"]
    masks: Float[Tensor, "a f rows columns"] | None = None


@dataclass(frozen=True)
class SinkInput:
    """A prefill: the reference latent and the motion latents (oldest first), seen at timestep 0."""

    reference: Float[Tensor, "b 16 1 h w"]
    motion: Float[Tensor, "b 16 m h w"]
    text: Float[Tensor, "b words text_dim"]

    @property
    def timestep(self) -> float:
        return 0.0


@dataclass
class CellState:
    """The state that each unit maps to its successor.

    `embed` fills `x` and those below it that are not there yet; blocks and injectors replace `x`; `head` leaves the
    velocity in `output`. With `prompt` and `sound`, keys and values are taken from there instead of being made anew.
    `x` and `query` hold the tokens of this rank's `share`.
    """

    inputs: CellInput | SinkInput
    cache: CacheView
    x: Tensor | None = None
    time: Tensor | None = None  # [b, groups, d], the time embedding: drives the head
    modulation: Tensor | None = None  # [b, groups, 6, d], its projection: drives the blocks
    text: Tensor | None = None  # [b, words, d]
    voice: Tensor | None = None  # [a, f, 5, d], attended by the injectors
    tone: Tensor | None = None  # [a, f, d], drives AdaIN
    query: list[Tensor] | None = None  # [a * f, n, d] per segment, from an AdaIN layer to its injector
    output: Tensor | None = None  # [b, 16, f, h, w], the velocity
    prompt: PreparedPrompt | None = None
    sound: PreparedVoice | None = None
    share: Share = field(default_factory=Whole)

    @property
    def is_sink(self) -> bool:
        return isinstance(self.inputs, SinkInput)

    @property
    def tokens(self) -> int:
        """How many tokens the state has, on all ranks together."""
        if isinstance(self.inputs, SinkInput):
            return Grid(*self.inputs.reference.shape[-2:]).sink_tokens
        return self.inputs.latents.shape[2] * Grid(*self.inputs.latents.shape[-2:]).frame_tokens

    @property
    def segments(self) -> list[Segment]:
        """The own tokens of a cell by latent frame."""
        own = slice(*self.share.own.indices(self.tokens))
        return segments(own, Grid(*self.cell.latents.shape[-2:]).frame_tokens)

    @property
    def hidden(self) -> Tensor:
        if self.x is None:
            raise RuntimeError("a unit ran before `embed`: units must run in the order in which the model lists them")
        return self.x

    @property
    def cell(self) -> CellInput:
        if isinstance(self.inputs, SinkInput):
            raise RuntimeError("a sink prefill has no noisy tokens: injectors and head do not serve it")
        return self.inputs


class Unit(nn.Module):
    """A part of the DiT whose weights live and move together.

    `cold` names the modules of a unit that see no video token, by the kind of conditioning that they prepare: they may
    move apart from the rest, the hot part, and stay out of the hot loop.
    """

    cold: ClassVar[Mapping[str, Sequence[str]]] = {}

    def part(self, kind: str | None = None) -> tuple[str, ...]:
        """The parameters that prepare conditioning of that kind, by name; without one, those of the hot part."""
        prefixes = {kind: tuple(f"{module}." for module in modules) for kind, modules in self.cold.items()}
        found = []
        for name, _ in self.named_parameters():
            if kind == next((k for k, prefix in prefixes.items() if name.startswith(prefix)), None):
                found.append(name)
        return tuple(found)

    def prepare(self, made: Prepared) -> None:
        """Add this unit's share to a piece of conditioning."""
        raise NotImplementedError

    def serves(self, state: CellState) -> bool:
        """Whether this unit has work for that state; a unit without work in a pass is never brought in."""
        return True

    def forward(self, state: CellState) -> CellState:
        raise NotImplementedError


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[b, tokens, d] to [b, tokens, heads, channels], a view."""
    return x.unflatten(-1, (heads, -1))


def parameters_dtype(module: nn.Module) -> torch.dtype:
    """The storage type of a unit's matrices: what activations are rounded to before a matrix product."""
    return next(module.parameters()).dtype
