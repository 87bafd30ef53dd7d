"""Training computes what inference computes: a clip in one pass against the rollout through the caches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from liveavatar.sampling.conditioning import SinkPlan
from liveavatar.training.clip import ClipBlock, ClipSink, clip_velocities, serve_clips
from liveavatar.training.draws import Passage
from liveavatar.training.scene import Scene
from tests.scene import conditioning, make_dit, make_rollout

BLOCKS, REFRESH = 7, 4


class Recorded:
    """A sampler that remembers what it was given."""

    def __init__(self, sampler) -> None:
        self.inner, self.seen = sampler, []
        self.steps, self.sigmas, self.timesteps = sampler.steps, sampler.sigmas, sampler.timesteps

    def step(self, x: Tensor, velocity: Tensor, index: int) -> Tensor:
        self.seen.append((index, x.clone(), velocity.clone()))
        return self.inner.step(x, velocity, index)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_clip_in_one_pass_is_the_rollout_through_the_caches(checkpointing: bool) -> None:
    """Seven blocks: the ring of four wraps, and the sink is refreshed by the first generated latent."""
    dit, given = make_dit(), conditioning()
    rollout = make_rollout(dit, given)
    rollout.sampler = recorded = Recorded(rollout.sampler)
    plan = SinkPlan(given.reference, lambda: given.motion, refresh=REFRESH)
    finished = [block.latents for block in rollout.blocks(BLOCKS, plan)]
    serve_clips(dit, checkpointing)
    sinks = [ClipSink(given.reference, given.motion), ClipSink(finished[0][:, :, :1], given.motion)]
    for step in range(recorded.steps):
        cells = [(x, v) for index, x, v in recorded.seen if index == step]
        blocks = [
            ClipBlock(
                index=number,
                latents=x,
                sigma=float(recorded.sigmas[step]),
                audio=given.audio.block(number),
                distance=rollout.distance(number, step),
                sink=int(number >= REFRESH),
            )
            for number, (x, _) in enumerate(cells)
        ]
        made = clip_velocities(dit, sinks, blocks, given.text)
        assert len(made) == BLOCKS
        for number, (_, velocity) in enumerate(cells):
            torch.testing.assert_close(made[number].detach(), velocity, atol=1e-5, rtol=1e-5)


def test_a_walk_comes_to_the_latents_that_the_rollout_comes_to() -> None:
    """From the rollout's own noise, all blocks of a step together, with the reference as far away at every step."""
    dit, given = make_dit(), conditioning()
    rollout = make_rollout(dit, given)
    rollout.distance = lambda number, step: 4 + number
    rollout.sampler = recorded = Recorded(rollout.sampler)
    plan = SinkPlan(given.reference, lambda: given.motion, refresh=BLOCKS)
    list(rollout.blocks(BLOCKS, plan))
    cells = [torch.cat([x for index, x, _ in recorded.seen if index == step], 2) for step in range(recorded.steps)]
    serve_clips(dit)
    heard = [given.audio.block(number) for number in range(BLOCKS)]
    passage = Passage(0, [0], [1.0] * BLOCKS, [4 + number for number in range(BLOCKS)], BLOCKS, 0.0)
    scene = Scene(dit, passage, [ClipSink(given.reference, given.motion)], heard, given.text, 12)
    for step, wanted in enumerate(cells):
        made = scene.walked(cells[0], recorded.inner, step)
        assert not made.requires_grad
        torch.testing.assert_close(made, wanted.float(), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(cells[1], cells[0])


def test_a_walk_with_a_past_sees_it_at_every_step() -> None:
    """The first block goes straight from its noise to what is known of it; those behind it walk, and look at it."""
    dit, given = make_dit(), conditioning()
    sampler = make_rollout(dit, given).sampler
    serve_clips(dit)
    heard = [given.audio.block(number) for number in range(BLOCKS)]
    passage = Passage(40, [0], [1.0] * BLOCKS, [4] * BLOCKS, REFRESH, 0.0)
    scene = Scene(dit, passage, [ClipSink(given.reference, given.motion)], heard, given.text, 12)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn((1, 16, 3 * BLOCKS, *given.reference.shape[-2:]), generator=generator)
    past = torch.randn((1, 16, 3, *noise.shape[-2:]), generator=generator)
    steps = sampler.steps - 1
    alone, seen = (scene.walked(noise, sampler, steps, past=known) for known in (None, past))
    level = float(sampler.sigmas[steps])
    torch.testing.assert_close(seen[:, :, :3], (1 - level) * past + level * noise[:, :, :3])
    assert not torch.allclose(seen[:, :, 3:6], alone[:, :, 3:6])
    assert torch.equal(scene.walked(noise, sampler, steps, past=past[:, :, :0]), alone)
