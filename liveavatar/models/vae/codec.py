"""The Wan 2.1 VAE on diffusers' modules: pictures to normalised latents and back (reference: section 10)."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanRMS_norm
from jaxtyping import Float
from torch import Tensor, nn

from liveavatar.models.vae.quick import make_quick, plain_layers, product
from liveavatar.models.vae.seams import Seams, between, divided, make_divisible, mended
from liveavatar.models.vae.streaming import FeatureCache, stream_decode, stream_encode

LATENTS_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
"""Mean of each latent channel over the data that Wan 2.1 was trained on."""

LATENTS_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
"""Standard deviation of each latent channel over the data that Wan 2.1 was trained on."""


ONEDNN_PIXELS = 32 * 32
"""Below this picture size the layer's own loop is the faster one."""


class WanCodec(nn.Module):
    """Encoder and decoder of the Wan 2.1 VAE: 8x8 pixels and 4 frames to one latent pixel of 16 channels.

    Holds weights and nothing else: the memory of a stream is a `DecodeState` or `EncodeState` of its owner.
    Input of any dtype is cast to the weights'; results have the weights' dtype.
    Parameters are frozen; may be built under `torch.device("meta")`. Keywords are those of the published
    configuration; the defaults are Wan 2.1.

    Raises:
        ValueError: the latent statistics do not have `z_dim` entries.
    """

    def __init__(
        self,
        *,
        base_dim: int = 96,
        z_dim: int = 16,
        dim_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        temperal_downsample: Sequence[bool] = (False, True, True),
        latents_mean: Sequence[float] = LATENTS_MEAN,
        latents_std: Sequence[float] = LATENTS_STD,
    ) -> None:
        super().__init__()
        if len(latents_mean) != z_dim or len(latents_std) != z_dim:
            raise ValueError(
                f"latents_mean has {len(latents_mean)} and latents_std {len(latents_std)} entries, but z_dim "
                f"is {z_dim}: give one of each per channel"
            )
        self.z_dim = z_dim
        # Plain numbers: a buffer of a module built on "meta" would be empty, and no file would fill it.
        self.latents_mean = tuple(latents_mean)
        self.latents_std = tuple(latents_std)
        self.vae = AutoencoderKLWan(
            base_dim=base_dim,
            z_dim=z_dim,
            dim_mult=list(dim_mult),
            num_res_blocks=num_res_blocks,
            attn_scales=[],
            temperal_downsample=list(temperal_downsample),
            latents_mean=list(latents_mean),
            latents_std=list(latents_std),
        )
        for part in self.vae.modules():
            if isinstance(part, nn.Conv3d):
                part._conv_forward = partial(_convolve, part)  # type: ignore[method-assign]
            elif isinstance(part, WanRMS_norm):
                part.forward = partial(_normalise, part)
        make_divisible(self.vae.decoder, WanAttentionBlock)
        make_quick(self.vae.decoder, _quick)  # the encoder stays as it is: latents keep their bits
        self.encoder_slots = _convolutions(self.vae.encoder)
        self.decoder_slots = _convolutions(self.vae.decoder)
        self.requires_grad_(False)

    def encode(self, video: Float[Tensor, "b 3 t H W"]) -> Float[Tensor, "b z f h w"]:
        """Normalised latents of a whole video in [-1, 1]: the mean of the posterior, never a sample of it.

        The first frame gives one latent, every four frames after it one more; up to three frames left over
        are dropped, as the reference does.
        """
        latents, _ = stream_encode(self, video)
        assert latents is not None  # one frame is enough for a latent, and stream_encode refuses none
        return latents

    def decode(self, latents: Float[Tensor, "b z f h w"], plain: bool = False) -> Float[Tensor, "b 3 t H W"]:
        """Frames in [-1, 1] of whole normalised latents: 1 for the first latent, 4 for each one after it.

        `plain`: by diffusers' own layers, where frames are encoded again; those of `quick` differ by rounding.
        """
        with plain_layers(plain):
            frames, _ = stream_decode(self, latents)
        return frames

    def normalise(self, mu: Float[Tensor, "b z f h w"]) -> Float[Tensor, "b z f h w"]:
        """Channels to mean 0 and deviation 1, in the dtype of `mu`."""
        mean, inverse = self._statistics(mu)
        return (mu - mean) * inverse

    def denormalise(self, latents: Float[Tensor, "b z f h w"]) -> Float[Tensor, "b z f h w"]:
        """The inverse of `normalise`."""
        mean, inverse = self._statistics(latents)
        return latents / inverse + mean

    def encode_chunk(self, frames: Float[Tensor, "b 3 t H W"], cache: FeatureCache) -> Float[Tensor, "b z 1 h w"]:
        """One latent from the next chunk of a stream: 1 frame the first time, 4 afterwards. Fills `cache`."""
        frames = _arranged(frames.to(self.vae.dtype))
        moments = self.vae.quant_conv(self.vae.encoder(frames, feat_cache=cache, feat_idx=[0]))
        return self.normalise(moments[:, : self.z_dim])

    def decode_latent(
        self, latent: Float[Tensor, "b z 1 h w"], cache: FeatureCache, first: bool, seams: Seams | None = None
    ) -> Float[Tensor, "b 3 t H W"]:
        """The frames of the next latent of a stream: 1 for the first, 4 afterwards. Fills `cache`.

        With `seams`, latent, frames and cache are a part of the picture's lines.
        """
        hidden = self.vae.post_quant_conv(self.denormalise(_arranged(latent.to(self.vae.dtype))))
        with between(seams):
            frames = self.vae.decoder(hidden, feat_cache=cache, feat_idx=[0], first_chunk=first)
        return frames.clamp(-1, 1)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and inverse deviation, rounded to the dtype of the latents as the reference keeps them."""
        shape = (1, self.z_dim, 1, 1, 1)
        mean = torch.tensor(self.latents_mean, dtype=like.dtype, device=like.device).view(shape)
        std = torch.tensor(self.latents_std, dtype=like.dtype, device=like.device).view(shape)
        return mean, 1.0 / std


def _convolve(conv: nn.Conv3d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of a layer, by oneDNN where that is faster: on a CPU, for pictures that are not tiny.

    PyTorch takes oneDNN for a single 3D input by the size of its first four dimensions alone, and so misses the wide
    pictures with few channels of a small codec, where its own loop is up to ten times slower.
    """
    x = mended(conv, x)  # which the layer itself has padded
    fits = x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[-1] * x.shape[-2] >= ONEDNN_PIXELS
    if not fits or weight.requires_grad or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return F.conv3d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return product(conv, x, list(conv.padding))


def _arranged(x: Tensor) -> Tensor:
    """Channels last in memory on a CPU: convolutions with few channels then take half the time."""
    return x.contiguous(memory_format=torch.channels_last_3d) if x.device.type == "cpu" else x


def _normalise(norm: WanRMS_norm, x: Tensor) -> Tensor:
    """The layer's norm over channels, without PyTorch's vector norm, which is twenty times slower on a CPU."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not norm.channel_first:
        return WanRMS_norm.forward(norm, x)
    length = x.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)
    return x * (norm.scale / length) * norm.gamma + norm.bias


def _quick(x: Tensor, cache: FeatureCache | None) -> bool:
    """Whether the layers may take the short way: a whole picture of a stream, on a CPU."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and cache is not None and not divided()


def _convolutions(module: nn.Module) -> int:
    """Enough cache slots for a half: one per 3D convolution (the shortcuts leave theirs empty)."""
    return sum(isinstance(part, nn.Conv3d) for part in module.modules())
