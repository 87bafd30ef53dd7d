"""The Wan VAE as a stream: a state that a session owns, and one step of time for it.

Every causal convolution needs the two frames before its input. Those frames are the whole memory of the
codec, and they live here, in a value that is passed in and handed back, not in the module: two streams can
share one codec, and an older state may be kept and continued from again. Reference: section 10.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from liveavatar.types import LATENT_STRIDE

FeatureCache = list[Tensor | str | None]
"""One slot per causal convolution: its last input frames, None before the first, a mark while it warms up."""


@runtime_checkable
class ChunkCodec(Protocol):
    """What streaming asks of a codec: one latent at a time in either direction, with an explicit cache."""

    encoder_slots: int
    decoder_slots: int

    def encode_chunk(self, frames: Tensor, cache: FeatureCache) -> Tensor: ...

    def decode_latent(self, latent: Tensor, cache: FeatureCache, first: bool) -> Tensor: ...


@dataclass(frozen=True)
class DecodeState:
    """Where a decoded stream stands: `cache` is per convolution, `latents` counts what has gone in."""

    cache: tuple[Tensor | str | None, ...] = ()
    latents: int = 0

    def nbytes(self) -> int:
        """Bytes held by the cache; constant after the second latent."""
        return _nbytes(self.cache)


@dataclass(frozen=True)
class EncodeState:
    """Where an encoded stream stands: `cache` is per convolution, `frames` counts what has been encoded.

    `pending` holds 0 to 3 frames that wait for the rest of their group of four.
    """

    cache: tuple[Tensor | str | None, ...] = ()
    frames: int = 0
    pending: Tensor | None = None

    def nbytes(self) -> int:
        """Bytes held by the cache and the waiting frames."""
        return _nbytes((*self.cache, self.pending))


def stream_decode(
    codec: ChunkCodec, latents: Float[Tensor, "b z f h w"], state: DecodeState | None = None
) -> tuple[Float[Tensor, "b 3 t H W"], DecodeState]:
    """Decode the next latents of a stream.

    Args:
        codec: a `WanCodec`.
        latents: normalised latents, any number of them from 1.
        state: None for the first call, afterwards what the last call returned. It is not changed.

    Returns:
        Frames in [-1, 1]: 4 per latent, but 1 for the first latent of the stream; and the next state. Latents
        are decoded one by one inside, so how a stream is cut into calls does not change a single bit.

    Raises:
        ValueError: no latent was given.
    """
    if latents.shape[2] < 1:
        raise ValueError("0 latents were given to decode: pass at least 1")
    state = state or DecodeState()
    cache: FeatureCache = list(state.cache) or [None] * codec.decoder_slots
    frames = [
        codec.decode_latent(latent, cache, first=state.latents + number == 0)
        for number, latent in enumerate(latents.split(1, dim=2))
    ]
    return torch.cat(frames, dim=2), DecodeState(tuple(cache), state.latents + latents.shape[2])


def stream_encode(
    codec: ChunkCodec, frames: Float[Tensor, "b 3 t H W"], state: EncodeState | None = None
) -> tuple[Float[Tensor, "b z f h w"] | None, EncodeState]:
    """Encode the next frames of a stream.

    Args:
        codec: a `WanCodec`.
        frames: pictures in [-1, 1], any number of them from 1.
        state: None for the first call, afterwards what the last call returned. It is not changed.

    Returns:
        Normalised latents, 1 for the first frame of the stream and 1 for every 4 after it, or None while a
        group of four is incomplete; and the next state, which keeps that group. How a stream is cut
        into calls changes no bit.

    Raises:
        ValueError: no frame was given.
    """
    if frames.shape[2] < 1:
        raise ValueError("0 frames were given to encode: pass at least 1")
    state = state or EncodeState()
    cache: FeatureCache = list(state.cache) or [None] * codec.encoder_slots
    if state.pending is not None:
        frames = torch.cat([state.pending, frames], dim=2)
    latents, done, total = [], 0, frames.shape[2]
    while done + (size := 1 if state.frames + done == 0 else LATENT_STRIDE) <= total:
        latents.append(codec.encode_chunk(frames[:, :, done : done + size], cache))
        done += size
    # A view would keep the whole input alive for the sake of at most three frames.
    pending = frames[:, :, done:].clone() if done < total else None
    following = EncodeState(tuple(cache), state.frames + done, pending)
    return (torch.cat(latents, dim=2) if latents else None), following


def _nbytes(tensors: tuple[Tensor | str | None, ...]) -> int:
    return sum(slot.numel() * slot.element_size() for slot in tensors if isinstance(slot, Tensor))
