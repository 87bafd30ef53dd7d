"""A micro DiT and a random conditioning: what tests of ops, units, rollout and strategies are played with.

Everything is a pure function of its arguments, so that several processes make the same scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from liveavatar.checkpoint.read import RandomWeights
from liveavatar.config import conf_dir
from liveavatar.models.dit.cache import SinkView, StreamView
from liveavatar.models.dit.context import reference_place
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.models.dit.state import CellInput, CellState, SinkInput
from liveavatar.sampling.conditioning import Conditioning, MaskTrack, NoPose, RolloutSettings, SinkPlan
from liveavatar.sampling.noise import CounterDistance, CounterNoise
from liveavatar.sampling.relay import LocalRelay
from liveavatar.sampling.rollout import Rollout
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.strategies.single import SingleDevice


def config(name: str = "micro") -> dict[str, Any]:
    """The keywords of `model=NAME`'s DiT."""
    loaded = OmegaConf.load(Path(conf_dir()) / "model" / f"{name}.yaml")
    keywords = OmegaConf.to_container(loaded.dit)
    assert isinstance(keywords, dict)
    del keywords["_target_"]
    return {str(key): value for key, value in keywords.items()}


def meta_dit(name: str = "micro", **changes: Any) -> AvatarDiT:
    with torch.device("meta"):
        return AvatarDiT(**(config(name) | changes)).eval()


def make_dit(dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> AvatarDiT:
    """A micro DiT with seeded random weights, placed by the default strategy."""
    model = meta_dit(**changes)
    SingleDevice().place(model, RandomWeights(seed), dtype)
    return model


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Voices:
    """Speech features that are a pure function of the block."""

    seed: int
    actors: int
    layers: int
    channels: int

    def block(self, index: int) -> Tensor:
        return draw(1000 * self.seed + index, self.actors, self.layers, self.channels, 12)


def conditioning(h: int = 16, w: int = 8, actors: int = 1, seed: int = 0) -> Conditioning:
    """Random text, pictures and voices; several actors get masks that overlap in part."""
    sizes = config()
    masks = None
    if actors > 1:
        rows = torch.arange(h // 2) * actors // (h // 2)
        masks = torch.stack([(rows >= a) * 1.0 for a in range(actors)])
        masks = masks[:, None, :, None].expand(-1, 12, -1, w // 2)
    return Conditioning(
        text=draw(seed + 1, 1, 7, sizes["text_dim"]),
        reference=draw(seed + 2, 1, 16, 1, h, w),
        motion=draw(seed + 3, 1, 16, 19, h, w),
        audio=Voices(seed + 4, actors, sizes["audio_layers"], sizes["audio_dim"]),
        pose=NoPose(torch.zeros(1, 16, 3, h, w)),
        masks=None if masks is None else MaskTrack(masks),
    )


def make_rollout(
    model: AvatarDiT,
    given: Conditioning,
    steps: int = 4,
    seed: int = 0,
    first_block: int = 0,
    cells_in_flight: int = 1,
    **settings: Any,
) -> Rollout:
    return Rollout(
        model,
        given,
        EulerSampler(steps),
        RolloutSettings(**settings),
        CounterNoise(seed),
        CounterDistance(seed),
        first_block,
        LocalRelay(steps, cells_in_flight),
    )


def sink_of(rollout: Rollout, refresh: bool = True) -> SinkPlan:
    """The session's plan: the first generated latent takes over in the second clip."""
    given = rollout.conditioning
    when = rollout.first_block + rollout.settings.blocks_per_clip if refresh else None
    return SinkPlan(given.reference, lambda: given.motion, rollout.first_block, when)


def sink_state(rollout: Rollout) -> CellState:
    """The prefill of a rollout's sink, to be passed through the model by hand."""
    given, grid, head_dim = rollout.conditioning, rollout.grid, rollout.dit.head_dim
    turns = torch.cat((grid.reference_turns(30, head_dim), grid.motion_turns(head_dim)))
    return CellState(SinkInput(given.reference, given.motion, given.text), SinkView(rollout.caches.sink, turns))


def cell_state(rollout: Rollout, block: int, step: int, latents: Tensor) -> CellState:
    """One cell of a rollout, to be passed through the model by hand."""
    given, grid, head_dim, caches = rollout.conditioning, rollout.grid, rollout.dit.head_dim, rollout.caches
    place = reference_place(3 * block, rollout.distance(block, step))
    turns = torch.cat((grid.reference_turns(place, head_dim), grid.motion_turns(head_dim)))
    view = StreamView(
        caches.rings[step], caches.sink, caches.scratch, 3 * block, 3, grid.noisy_turns(3 * block, 3, head_dim), turns
    )
    timestep = float(rollout.sampler.timesteps[step])
    inputs = CellInput(latents, timestep, given.pose.block(block), given.audio.block(block), given.text)
    return CellState(inputs, view)


def latents_of(rollout: Rollout, blocks: int, refresh: bool = True) -> Tensor:
    """All latents of a run, [blocks, 16, 3, h, w]."""
    finished = rollout.blocks(blocks, sink_of(rollout, refresh))
    return torch.stack([block.latents[0] for block in finished])
