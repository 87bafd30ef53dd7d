"""The Wan VAE with gradients: whole pictures or whole clips in one pass over the codec's own weights.

Streaming walks a clip in chunks behind a cache; here a clip goes through at once, which gives the same numbers and one
graph. A single frame sees the last temporal tap of every causal kernel and nothing else, so it takes plain 2-D
convolutions, a third of the work. Reference: semantics, section 10.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from liveavatar.models.vae.codec import WanCodec

Video = Float[Tensor, "b 3 t H W"]
Latents = Float[Tensor, "b z f h w"]

QUIET = -6.0
"""Log-variance of the posterior at the start: latents carry little noise until the loss asks for more."""


class Autoencoder(nn.Module):
    """A `WanCodec` that can be trained, whole or its decoder alone; its weights are the codec's, by their names.

    noise: what is added to latents on their way to the decoder, as a share of their own deviation: what is to be drawn
        must then stand out of it, for a model that makes latents will not be exact either.
    """

    def __init__(self, codec: WanCodec, encoder_learns: bool = True, noise: float = 0.0) -> None:
        super().__init__()
        self.codec, self.noise = codec, noise
        codec.requires_grad_(True)
        if not encoder_learns:
            for half in encoder_half(codec):
                half.requires_grad_(False)

    def posterior(self, video: Video) -> tuple[Latents, Latents]:
        """Mean and log-variance of the latents, not normalised. A clip has 1 + 4k frames."""
        vae: Any = self.codec.vae
        x = _conv(vae.encoder.conv_in, video)
        for part in vae.encoder.down_blocks:
            x = _resample(part, x) if hasattr(part, "resample") else _residual(part, x)
        x = _head(vae.encoder, _middle(vae.encoder.mid_block, x))
        mean, log_variance = _conv(vae.quant_conv, x).chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def render(self, latents: Latents) -> Video:
        """Frames of latents as `posterior` gives them, not clamped."""
        vae: Any = self.codec.vae
        x = _middle(vae.decoder.mid_block, _conv(vae.decoder.conv_in, _conv(vae.post_quant_conv, latents)))
        for block in vae.decoder.up_blocks:
            for part in block.resnets:
                x = _residual(part, x)
            for part in block.upsamplers or ():
                x = _resample(part, x)
        return _head(vae.decoder, x)

    def forward(self, video: Video, noise: Latents) -> tuple[Video, Latents, Latents]:
        """The video again, through a sample of the posterior, and the posterior's mean and log-variance."""
        mean, log_variance = self.posterior(video)
        variance = log_variance.exp()
        if self.noise:
            variance = variance + self.noise**2 * mean.detach().var((0, 2, 3, 4), keepdim=True)
        return self.render(mean + noise * variance.sqrt()), mean, log_variance


def encoder_half(codec: WanCodec) -> tuple[nn.Module, nn.Module]:
    """What makes latents of pictures: the encoder and the 1x1x1 convolution behind it."""
    vae: Any = codec.vae
    return vae.encoder, vae.quant_conv


def latent_size(video: tuple[int, ...], z_dim: int) -> tuple[int, ...]:
    """The shape of the latents of a video of that shape."""
    b, _, t, height, width = video
    return b, z_dim, 1 + (t - 1) // 4, height // 8, width // 8


@torch.no_grad()
def initialise(codec: WanCodec, seed: int) -> None:
    """Start values: residual branches at zero, earlier temporal taps at zero, resampling that keeps what it is given.

    So a fresh network is nearly linear from picture to latent and back, a clip is treated frame by frame, and both
    learn their refinements from there.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, part in codec.vae.named_modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d)):
            _start(name, part, generator)
        elif hasattr(part, "gamma"):
            part.gamma.fill_(1.0)
    z = codec.z_dim
    vae: Any = codec.vae
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.zero_()
        conv.weight[:, :, 0, 0, 0].copy_(torch.eye(conv.out_channels))
        conv.bias.zero_()
    vae.quant_conv.weight[z:] *= 0.1
    vae.quant_conv.bias[z:] = QUIET


def _start(name: str, conv: nn.Conv2d | nn.Conv3d, generator: torch.Generator) -> None:
    if conv.bias is not None:
        conv.bias.zero_()
    weight = conv.weight.zero_()
    if name.endswith("time_conv"):
        _keep_time(weight)
        return
    if name.endswith((".conv2", ".proj")):
        return
    taps = weight[:, :, -1] if weight.dim() == 5 else weight
    if name.endswith("resample.1") and conv.stride[0] == 2:
        # the picture is padded on the right and below: the first 2 x 2 taps are the four pixels that become one
        taps[:, :, :2, :2] = _isometry(taps[:, :, :2, :2].shape, generator)
    elif name.endswith("conv_shortcut"):
        taps.copy_(_isometry(taps.shape, generator))
    else:
        fan_in = math.prod(taps.shape[1:])
        taps.copy_(torch.randn(taps.shape, generator=generator) / math.sqrt(fan_in))


def _isometry(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A matrix with orthogonal rows (or columns), in the shape of a kernel."""
    flat = torch.randn(shape[0], math.prod(shape[1:]), generator=generator)
    u, _, v = torch.linalg.svd(flat, full_matrices=False)
    return (u @ v).view(shape)


def _keep_time(weight: Tensor) -> None:
    """Temporal resampling that averages two frames into one, or shows one frame twice."""
    out, channels = weight.shape[:2]
    same = torch.eye(channels)
    if out == channels:
        weight[:, :, 1, 0, 0] = weight[:, :, 2, 0, 0] = 0.5 * same
    else:
        weight[:, :, 2, 0, 0] = torch.cat((same, same))


@torch.no_grad()
def fold_statistics(codec: WanCodec, mean: Float[Tensor, " z"], std: Float[Tensor, " z"]) -> None:
    """Change the codec so that its normalised latents have mean 0 and deviation 1 per channel, pictures unchanged.

    `mean` and `std` are those of the latents before normalisation. The change goes into the 1x1x1 convolutions on both
    sides of the latents, so that the published statistics stay in place and no configuration is needed.
    """
    vae: Any = codec.vae
    z = codec.z_dim
    target_mean, target_std = torch.tensor(codec.latents_mean), torch.tensor(codec.latents_std)
    scale = target_std / std
    vae.quant_conv.weight[:z] *= scale.view(-1, 1, 1, 1, 1)
    vae.quant_conv.bias[:z] = (vae.quant_conv.bias[:z] - mean) * scale + target_mean
    offset = mean - target_mean / scale
    inner = vae.post_quant_conv.weight[:, :, 0, 0, 0]
    vae.post_quant_conv.bias += inner @ offset
    vae.post_quant_conv.weight /= scale.view(1, -1, 1, 1, 1)


class Moments:
    """Mean and deviation per channel of latents seen so far."""

    def __init__(self) -> None:
        self.count, self.total, self.square = 0, torch.tensor(0.0), torch.tensor(0.0)

    def add(self, latents: Latents) -> None:
        flat = latents.detach().double().transpose(0, 1).flatten(1)
        self.count += flat.shape[1]
        self.total = self.total + flat.sum(1)
        self.square = self.square + flat.square().sum(1)

    def values(self) -> tuple[Tensor, Tensor]:
        mean = self.total / self.count
        return mean.float(), (self.square / self.count - mean.square()).clamp_min(1e-8).sqrt().float()


def _conv(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """A causal convolution of a whole clip, or of a still by its last temporal tap."""
    rows, taps = conv.kernel_size[1] // 2, conv.kernel_size[0]
    if x.shape[2] == 1:
        return F.conv2d(x[:, :, 0], conv.weight[:, :, -1], conv.bias, padding=rows).unsqueeze(2)
    past = F.pad(x, (0, 0, 0, 0, taps - 1, 0))
    return _joined([past[:, :, k : k + x.shape[2]] for k in range(taps)], conv, rows)


def _joined(taps: list[Tensor], conv: nn.Conv3d, rows: int = 0) -> Tensor:
    """A 3-D convolution as a 2-D one over its temporal taps side by side: on a CPU several times as fast."""
    kernel = conv.weight.transpose(1, 2).flatten(1, 2)
    pictures = torch.cat(taps, dim=1).transpose(1, 2)
    made = F.conv2d(pictures.flatten(0, 1), kernel, conv.bias, padding=rows)
    return made.unflatten(0, pictures.shape[:2]).transpose(1, 2)


def _norm(norm: Any, x: Tensor) -> Tensor:
    gamma, scale = norm.gamma, norm.scale
    assert isinstance(gamma, Tensor)
    inverse = x.square().sum(1, keepdim=True).clamp_min(1e-12).rsqrt() * scale
    return x * inverse * gamma.view(1, -1, *[1] * (x.dim() - 2))


def _residual(block: Any, x: Tensor) -> Tensor:
    shortcut = x if isinstance(block.conv_shortcut, nn.Identity) else _conv(block.conv_shortcut, x)
    x = _conv(block.conv1, F.silu(_norm(block.norm1, x)))
    return shortcut + _conv(block.conv2, F.silu(_norm(block.norm2, x)))


def _middle(block: Any, x: Tensor) -> Tensor:
    first, *rest = block.resnets
    x = _residual(first, x)
    for attention, residual in zip(block.attentions, rest, strict=True):
        x = _residual(residual, attention(x) if attention is not None else x)
    return x


def _head(half: Any, x: Tensor) -> Tensor:
    return _conv(half.conv_out, F.silu(_norm(half.norm_out, x)))


def _resample(part: Any, x: Tensor) -> Tensor:
    if part.mode == "upsample3d" and x.shape[2] > 1:
        first, rest = x[:, :, :1], x[:, :, 1:]
        doubled = _conv(part.time_conv, rest)
        b, c, t, h, w = rest.shape
        doubled = doubled.view(b, 2, c, t, h, w).permute(0, 2, 3, 1, 4, 5).reshape(b, c, 2 * t, h, w)
        x = torch.cat((first, doubled), dim=2)
    frames = x.shape[2]
    x = part.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, frames)).transpose(1, 2)
    if part.mode == "downsample3d" and frames > 1:
        halved = _joined([x[:, :, k : k + frames - 2 : 2] for k in range(3)], part.time_conv)
        x = torch.cat((x[:, :, :1], halved), dim=2)
    return x


def parameter_count(modules: Iterable[nn.Module]) -> int:
    """Trainable values of some modules."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)
