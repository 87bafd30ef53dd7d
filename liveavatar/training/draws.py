"""What a training clip looks like: where it stands in its stream, how noisy each block is, what is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from liveavatar.sampling.scheduler import EulerSampler

SHORTEST_STRIDE = 0.05
"""Noise levels that a step must go down for the model to learn it from its own latents."""


@dataclass(frozen=True)
class DitSettings:
    """What the DiT learns from (the `dit` node).

    vae: folder of exported VAE weights (`vae.safetensors`).
    speech: folder of an exported speech encoder (`speech.safetensors`), which stays as it is; null trains one along.
    text: folder of an exported text encoder (`text.safetensors`), which stays as it is; null trains one along.
    clips: clips of a batch.
    blocks: blocks of a clip that pass at once; more than the ring holds, so that it is seen wrapped.
    young: share of batches at the start of a stream, where the portrait is the reference; others stand anywhere up to
        block `longest`, with the first latent of their stream as the reference. Their first block counts for nothing:
        it lacks the past that it would have at inference.
    independent: share of batches in which each block has a noise level of its own (diffusion forcing); in the others
        all blocks share one, as the caches of a step do.
    sampler_levels: share of noise levels that are one of the sampler's; others are drawn from all.
    walked: share of batches whose noisy latents are those that the model's own steps lead to, as at inference, instead
        of true ones with noise; it learns to go from there to the true ones (arXiv:2506.08009, without a critic).
    corruption: largest deviation of noise added to clean latents (blocks and refreshed reference), in half the batches.
    reword: share of clips whose prompt is said in other words each time (`sources.RewordingSource`): a clip has one
        prompt, and what few prompts say together is soon known by heart instead of read.
    drop_text, drop_audio: share of clips without prompt, without voice.
    mouth, eyes: by how much more than others the latent pixels around the mouth, the eyes and brows count.
    lids: by how much more those around the eyes count while lids are shut, which is rare: without it nobody blinks.
    tint: weight of the error of means over squares of four latent pixels: colours and shade, which details outweigh.
    listen: weight of the loss by which the speech encoder tells the mouth's curves, where the data know them.
    held_out_blocks: blocks of each clip that is generated for validation; `held_out_clips` of them.

    Raises ValueError, naming the key, for values that cannot work.
    """

    vae: str | None = None
    speech: str | None = None
    text: str | None = None
    clips: int = 4
    blocks: int = 6
    young: float = 0.35
    longest: int = 4000
    independent: float = 0.3
    sampler_levels: float = 0.6
    walked: float = 0.0
    corruption: float = 0.2
    reword: float = 0.0
    drop_text: float = 0.1
    drop_audio: float = 0.05
    mouth: float = 2.0
    eyes: float = 0.0
    lids: float = 0.0
    tint: float = 0.0
    listen: float = 0.5
    held_out_blocks: int = 8
    held_out_clips: int = 2

    def __post_init__(self) -> None:
        for key in ("clips", "blocks", "longest", "held_out_blocks", "held_out_clips"):
            if getattr(self, key) < 1:
                raise ValueError(f"dit.{key}={getattr(self, key)} must be 1 or more")
        for key in ("young", "independent", "sampler_levels", "walked", "reword", "drop_text", "drop_audio"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"dit.{key}={getattr(self, key)} is a share: use 0 to 1")
        for key in ("corruption", "mouth", "eyes", "lids", "tint", "listen"):
            if getattr(self, key) < 0:
                raise ValueError(f"dit.{key}={getattr(self, key)} cannot be negative")


@dataclass(frozen=True)
class Passage:
    """The place of a batch in its streams.

    first: number of the first block. starts: block of each clip that stands there. sigmas: noise level of each block.
    distances: of the reference, per block. refresh: from which block on the first latent is the reference.
    walked: steps of the sampler that lead to the noisy latents; None where these are true ones with noise.
    """

    first: int
    starts: list[int]
    sigmas: list[float]
    distances: list[int]
    refresh: int
    corruption: float
    walked: int | None = None


def draw_passage(
    rng: np.random.Generator,
    settings: DitSettings,
    sampler: EulerSampler,
    lengths: Sequence[int],
    refresh: int,
    distance: Sequence[int],
    walked: int | None = None,
) -> Passage:
    """A random passage of clips that have `lengths` blocks; `refresh` and `distance` are those of the rollout."""
    count = min(settings.blocks, *lengths)
    young = rng.random() < settings.young
    if young:
        first, starts = 0, [0] * len(lengths)
    else:
        low, high = math.log(refresh), math.log(max(settings.longest, refresh + 1))
        first = round(math.exp(rng.uniform(low, high)))
        starts = [int(rng.integers(length - count + 1)) for length in lengths]
    if walked is not None:
        sigmas = [float(sampler.sigmas[walked])] * count
    elif rng.random() < settings.independent:
        sigmas = [draw_sigma(rng, settings, sampler) for _ in range(count)]
    else:
        sigmas = [draw_sigma(rng, settings, sampler)] * count
    distances = [int(d) for d in rng.integers(distance[0], distance[1] + 1, count)]
    corruption = float(rng.uniform(0, settings.corruption)) if rng.random() < 0.5 else 0.0
    return Passage(first, starts, sigmas, distances, refresh, corruption, walked)


def draw_walk(rng: np.random.Generator, settings: DitSettings, sampler: EulerSampler) -> int | None:
    """Steps to take before the one that learns, drawn by how far that one goes; None: true latents with noise.

    One that hardly goes anywhere can mend nothing: what is wrong by then would be a huge velocity.
    """
    if rng.random() >= settings.walked:
        return None
    strides = _strides(sampler)
    strides[strides < SHORTEST_STRIDE] = 0
    return int(rng.choice(len(strides), p=strides / strides.sum()))


def _strides(sampler: EulerSampler) -> np.ndarray:
    """Noise levels that each step goes down."""
    return -np.diff(sampler.sigmas.double().numpy())


def draw_sigma(rng: np.random.Generator, settings: DitSettings, sampler: EulerSampler) -> float:
    """A noise level: one of the sampler's, mostly by how far it steps from there, or any, shifted towards noise."""
    if rng.random() < settings.sampler_levels:
        levels = sampler.sigmas.double().numpy()
        share = 0.9 * _strides(sampler) / levels[0] + 0.1 / sampler.steps
        return float(rng.choice(levels[:-1], p=share / share.sum()))
    u = float(rng.uniform(1e-3, 1))
    return 3 * u / (1 + 2 * u)
