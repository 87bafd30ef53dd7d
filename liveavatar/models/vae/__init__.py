"""The Wan 2.1 VAE, whole and as a stream."""

from liveavatar.models.vae.codec import LATENTS_MEAN, LATENTS_STD, WanCodec
from liveavatar.models.vae.streaming import DecodeState, EncodeState, stream_decode, stream_encode

__all__ = [
    "LATENTS_MEAN",
    "LATENTS_STD",
    "DecodeState",
    "EncodeState",
    "WanCodec",
    "stream_decode",
    "stream_encode",
]
