"""A passage of clips with all that conditions it, and its way through the DiT, from any latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from liveavatar.models.dit.model import AvatarDiT
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.training.clip import ClipBlock, ClipSink, clip_velocities
from liveavatar.training.draws import Passage
from liveavatar.types import BLOCK_LATENTS

Latents = Float[Tensor, "b 16 t h w"]


@dataclass(frozen=True)
class Scene:
    """Where a passage stands, what its streams look at, what each block hears, and the prompts.

    dit: prepared by `serve_clips`. heard: speech features of each block. cache_frames: latents that a ring holds.
    """

    dit: AvatarDiT
    passage: Passage
    sinks: Sequence[ClipSink]
    heard: Sequence[Float[Tensor, "b L c t"]]
    text: Float[Tensor, "b words text_dim"]
    cache_frames: int

    def velocity(self, x: Latents, sigmas: Sequence[float]) -> Latents:
        """What the model predicts for latents at these levels, one for each block, with gradients."""
        blocks = []
        for j, sigma in enumerate(sigmas):
            index = self.passage.first + j
            blocks.append(
                ClipBlock(
                    index=index,
                    latents=x[:, :, j * BLOCK_LATENTS : (j + 1) * BLOCK_LATENTS].to(self.dit.dtype),
                    sigma=sigma,
                    audio=self.heard[j],
                    distance=self.passage.distances[j],
                    sink=min(len(self.sinks) - 1, int(index >= self.passage.refresh)),
                )
            )
        return torch.cat(clip_velocities(self.dit, self.sinks, blocks, self.text, self.cache_frames), dim=2)

    @torch.no_grad()
    def walked(self, noise: Latents, sampler: EulerSampler, steps: int, past: Latents | None = None) -> Latents:
        """The latents after the first `steps` of the sampler, as the rollout from this noise comes to them.

        Blocks pass a step together, since those of a step see nothing of another: in a stream that begins with the
        passage these are inference's own numbers. One that has a past is given it as the first latents, clean: these
        go straight from the noise to it, and the others see at every step what was before them.
        """
        x = noise
        for step in range(steps):
            level = float(sampler.sigmas[step])
            x = sampler.step(x, self.velocity(x, [level] * len(self.heard)), step)
            if past is not None:
                known, level = past.shape[2], float(sampler.sigmas[step + 1])
                x = torch.cat(((1 - level) * past + level * noise[:, :, :known], x[:, :, known:]), dim=2)
        return x.float()
