"""Losses of the stages, on bare tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Video = Float[Tensor, "b 3 t H W"]


def charbonnier(error: Float[Tensor, ...], eps: float) -> Float[Tensor, ...]:
    """A smooth |error|: quadratic below `eps`, so that small errors are not chased for ever."""
    return (error.square() + eps * eps).sqrt() - eps


def reconstruction(made: Video, wanted: Video, weight: Float[Tensor, "b 1 t H W"], eps: float) -> Float[Tensor, ""]:
    """Weighted mean Charbonnier distance of the pixels."""
    return (weight * charbonnier(made - wanted, eps)).mean() / weight.mean()


def edges(made: Video, wanted: Video, weight: Float[Tensor, "b 1 t H W"], eps: float) -> Float[Tensor, ""]:
    """The same distance between the pictures' differences of neighbours, across and down: what makes lines crisp."""
    error = made - wanted
    across, down = error.diff(dim=-1), error.diff(dim=-2)
    left, top = weight[..., :, 1:], weight[..., 1:, :]
    return ((left * charbonnier(across, eps)).mean() + (top * charbonnier(down, eps)).mean()) / weight.mean()


def motion(made: Video, wanted: Video, weight: Float[Tensor, "b 1 t H W"], eps: float) -> Float[Tensor, ""]:
    """The same distance between a frame and the next: what moves is a small part of a picture; 0 for a still."""
    if made.shape[2] < 2:
        return made.new_zeros(())
    return (weight[:, :, 1:] * charbonnier((made - wanted).diff(dim=2), eps)).mean() / weight.mean()


def kl(mean: Float[Tensor, ...], log_variance: Float[Tensor, ...]) -> Float[Tensor, ""]:
    """Divergence of the posterior from a standard normal, in nats per latent value."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def psnr(made: Video, wanted: Video) -> Float[Tensor, " b"]:
    """Decibels per video, for pictures in [-1, 1]; the made ones are clamped first, as a viewer would see them."""
    error = (made.float().clamp(-1, 1) - wanted.float()).square().flatten(1).mean(1) / 4
    return -10 * error.clamp_min(1e-10).log10()


def velocity_error(
    made: Float[Tensor, ...], wanted: Float[Tensor, ...], weight: Float[Tensor, ...] | float = 1.0
) -> Float[Tensor, ""]:
    """Mean squared error of flow matching's velocity, in float32."""
    return (weight * (made.float() - wanted.float()).square()).mean()


def face_weight(
    mouth: Float[Tensor, "b t h w"],
    eyes: Float[Tensor, "b t h w"],
    lids: Float[Tensor, "b t"],
    by: tuple[float, float, float],
) -> Float[Tensor, "b 1 t h w"]:
    """How much each latent pixel counts, 1 on average: more by `by` in the mouth, the eyes, and eyes that are shut.

    Lids are shut in one of ten latents, and what is open in nine of ten is best drawn open as long as all count alike.
    """
    weight = 1 + by[0] * mouth + (by[1] + by[2] * lids[..., None, None]) * eyes
    return (weight / weight.mean()).unsqueeze(1)


def tint_error(made: Float[Tensor, "b c t h w"], wanted: Float[Tensor, "b c t h w"], side: int) -> Float[Tensor, ""]:
    """Mean squared error of the means over squares of `side` × `side`: colours and shade, which details outweigh.

    Edges that a side does not divide are left out.
    """
    error = made.float() - wanted.float()
    side = min(side, *error.shape[-2:])
    return F.avg_pool3d(error, (1, side, side)).square().mean()


def one_cycle(step: int, steps: int, warm: int, floor: float) -> float:
    """Learning rate over its peak: a linear rise over `warm` steps, then half a cosine down to `floor`."""
    if step < warm:
        return (step + 1) / warm
    share = (step - warm) / max(1, steps - warm)
    return floor + (1 - floor) * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * min(1.0, share)))))
