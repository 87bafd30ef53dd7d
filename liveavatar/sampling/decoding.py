"""Latents to frames: streaming (state carried on) or clipwise (motion re-encoded per clip); semantics, 7 and 8."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from liveavatar.models.vae.codec import WanCodec
from liveavatar.models.vae.streaming import ChunkCodec, stream_decode
from liveavatar.sampling.conditioning import DROPPED_FRAMES
from liveavatar.types import LATENT_STRIDE

MOTION_FRAMES = 73
"""Video frames of motion that the model looks back on: 19 latents."""

WARM_LATENTS = 7
"""Latents of the still picture that a streaming decoder swallows before the first block."""


@dataclass
class Decoded:
    """Frames that became ready, and the latents they were made of by block."""

    frames: Float[Tensor, "b 3 t H W"]
    latents: dict[int, Tensor] = field(default_factory=dict)


@runtime_checkable
class Decoding(Protocol):
    """Takes finished blocks in order, gives frames when it has some; `flush` gives what is left."""

    def push(self, index: int, latents: Tensor) -> Iterator[Decoded]: ...

    def flush(self) -> Iterator[Decoded]: ...


@runtime_checkable
class SharedCodec(ChunkCodec, Protocol):
    """A codec of which several ranks decode a part of the picture each; one of them collects whole frames."""

    def collect(self, frames: Tensor) -> Tensor | None: ...


class StreamDecoding:
    """12 frames per block, at once. Before the first block the decoder is fed the still picture, unseen.

    `collect` makes whole frames of what a shared codec has decoded; where it gives None, nothing is shown.
    """

    def __init__(
        self,
        codec: ChunkCodec,
        motion: Float[Tensor, "1 16 m h w"],
        collect: Callable[[Tensor], Tensor | None] | None = None,
    ) -> None:
        self.codec, self.collect = codec, collect or (lambda frames: frames)
        _, self.state = stream_decode(codec, motion[:, :, :WARM_LATENTS])
        self._fresh = True

    def push(self, index: int, latents: Tensor) -> Iterator[Decoded]:
        frames, self.state = stream_decode(self.codec, latents, self.state)
        if self._fresh:
            frames, self._fresh = frames[:, :, DROPPED_FRAMES:], False
        whole = self.collect(frames)
        if whole is not None:
            yield Decoded(whole, {index: latents[0]})

    def flush(self) -> Iterator[Decoded]:
        yield from ()


class ClipDecoding:
    """A clip at a time behind the latents of its motion, which are encoded anew from the last frames shown.

    `motion` is always that of the next clip; `window` are the frames it was encoded from (365 in the reference).
    """

    def __init__(
        self,
        codec: WanCodec,
        motion: Float[Tensor, "1 16 m h w"],
        window: Float[Tensor, "1 3 t H W"],
        per_clip: int,
    ) -> None:
        self.codec, self.motion, self.window, self.per_clip = codec, motion, window, per_clip
        self._held: dict[int, Tensor] = {}
        self._fresh = True

    def push(self, index: int, latents: Tensor) -> Iterator[Decoded]:
        self._held[index] = latents
        if len(self._held) == self.per_clip:
            yield self._decode()

    def flush(self) -> Iterator[Decoded]:
        if self._held:
            yield self._decode()

    def _decode(self) -> Decoded:
        held, self._held = self._held, {}
        clip = torch.cat(list(held.values()), dim=2)
        # plain: these frames come back as motion, and latents keep their bits
        frames = self.codec.decode(torch.cat((self.motion, clip), dim=2), plain=True)
        frames = frames[:, :, -LATENT_STRIDE * clip.shape[2] :]
        if self._fresh:
            frames, self._fresh = frames[:, :, DROPPED_FRAMES:], False
        recent = frames[:, :, -MOTION_FRAMES:]
        self.window = torch.cat((self.window[:, :, recent.shape[2] :], recent), dim=2)
        self.motion = self.codec.encode(self.window)
        return Decoded(frames, {index: latents[0] for index, latents in held.items()})
