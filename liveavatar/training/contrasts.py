"""What moves within the four frames that share a latent: read straight from the latent, so that an encoder tells it.

Reconstruction alone hardly teaches it. An encoder that says nothing of what frames differ in gives its decoder no
reason to listen, and a decoder that does not listen gives the encoder no reason to speak. One matrix from a latent to
those differences breaks the ring.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from liveavatar.training.data import PATCH, latent_means
from liveavatar.types import LATENT_STRIDE

CELL = 4
"""Pixels along the side of each mean colour that is read from a latent."""


class Contrasts(nn.Module):
    """A matrix from each latent to how the colours of its four frames differ from their mean, cell by cell."""

    def __init__(self, z_dim: int) -> None:
        super().__init__()
        self.read = nn.Linear(z_dim, LATENT_STRIDE * 3 * (PATCH // CELL) ** 2)
        for start in (self.read.weight, self.read.bias):  # a matrix at random would first turn latents towards itself
            nn.init.zeros_(start)

    def loss(
        self,
        latents: Float[Tensor, "b z f h w"],
        made: Float[Tensor, "b 3 t H W"],
        video: Float[Tensor, "b 3 t H W"],
        weight: Float[Tensor, "b 1 t H W"],
    ) -> Float[Tensor, ""]:
        """Weighted mean squared error of what is read from `latents`, and of what was `made` of them; 0 for a still.

        Squares, where pixels take distances: what moves is rare, and the median of a rare event is that nothing
        happens.
        """
        if latents.shape[2] < 2:
            return latents.new_zeros(())
        told = self.read(latents[:, :, 1:].movedim(1, -1)).float()
        share = latent_means(weight[:, :, 1:]).movedim(1, -1)
        wanted = differences(video)
        errors = (told - wanted).square() + (differences(made.float()) - wanted).square()
        return (share * errors).mean() / share.mean()


def differences(video: Float[Tensor, "b 3 t H W"]) -> Float[Tensor, "b f h w k"]:
    """For each latent behind the first: mean colours of its cells in each of its frames, less their mean over time."""
    cells = F.avg_pool3d(video[:, :, 1:], (1, CELL, CELL))
    b, c, t, height, width = cells.shape
    side = PATCH // CELL
    split = cells.view(b, c, t // LATENT_STRIDE, LATENT_STRIDE, height // side, side, width // side, side)
    apart = split - split.mean(3, keepdim=True)
    return apart.permute(0, 2, 4, 6, 3, 1, 5, 7).flatten(4)
