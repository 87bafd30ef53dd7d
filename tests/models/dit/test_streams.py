"""Whole streams through the DiT: any length, any grid, any number of heads and speakers, both precisions."""

from dataclasses import dataclass, replace

import pytest
import torch

from liveavatar.models.dit.context import FramePacker, Grid, reference_place
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.models.dit.state import CellState
from liveavatar.ops.rope import coarse_positions, grid_rotations
from liveavatar.sampling.conditioning import Conditioning, MaskTrack
from liveavatar.sampling.noise import CounterNoise
from tests.scene import Voices, conditioning, draw, latents_of, make_dit, make_rollout


@pytest.fixture(scope="module")
def model() -> AvatarDiT:
    return make_dit()


@dataclass(frozen=True)
class Shifted:
    """A source of blocks whose count starts elsewhere."""

    source: Voices | CounterNoise
    first: int

    def block(self, index: int, *shape: tuple[int, ...]) -> torch.Tensor:
        return self.source.block(index - self.first, *shape)


def stream_from(model: AvatarDiT, first: int, move_motion: bool) -> torch.Tensor:
    """Six blocks from `first` on, with the noise, voice and distances of a stream from 0."""
    given = conditioning()
    rollout = make_rollout(model, replace(given, audio=Shifted(given.audio, first)), first_block=first)
    rollout.noise = Shifted(CounterNoise(0), first)
    rollout.distance = lambda block, step: 4 + (block - first + step) % 5
    moved = motion_turns(rollout.grid, model.head_dim, 3 * first)

    def move(module: AvatarDiT, states: tuple[list[CellState]]) -> None:
        for state in states[0]:
            if not state.is_sink:
                reference = state.cache.sink_turns[: rollout.grid.frame_tokens]
                state.cache = replace(state.cache, sink_turns=torch.cat((reference, moved)))

    hook = model.register_forward_pre_hook(move) if move_motion else None
    latents = latents_of(rollout, 6, refresh=False)
    if hook is not None:
        hook.remove()
    return latents


def motion_turns(grid: Grid, head_dim: int, moved: int) -> torch.Tensor:
    parts = []
    for pooled, frames in ((1, [-1]), (2, [-3]), (4, [-19, -14, -9, -4])):
        rows = coarse_positions(grid.rows, grid.h // (2 * pooled))
        columns = coarse_positions(grid.columns, grid.w // (2 * pooled))
        parts.append(grid_rotations([moved + f for f in frames], rows, columns, head_dim))
    return torch.cat(parts)


@pytest.mark.parametrize("first", [101, 1_000_000, 3_333_335])
def test_a_stream_depends_on_relative_positions_only(model: AvatarDiT, first: int) -> None:
    """Motion tokens stand before frame 0 for ever; moved along, block 10 and block 10^6 are the same block."""
    here = stream_from(model, 10, move_motion=True)
    torch.testing.assert_close(stream_from(model, first, move_motion=True), here, rtol=0, atol=1e-4)


def test_ten_million_frames_on_the_motion_is_farther_away_and_all_is_finite(model: AvatarDiT) -> None:
    far, near = (stream_from(model, first, move_motion=False) for first in (3_333_335, 10))
    assert far.isfinite().all()
    assert 1e-4 < (far - near).abs().max() < 10
    assert torch.equal(stream_from(model, 10, move_motion=False), near)


def test_the_unmoved_motion_stands_where_the_model_puts_it(model: AvatarDiT) -> None:
    for grid in (Grid(16, 8), Grid(18, 10), Grid(8, 8), Grid(14, 6)):
        assert torch.equal(grid.motion_turns(16), motion_turns(grid, 16, 0))
        assert len(grid.motion_turns(16)) + grid.frame_tokens == grid.sink_tokens


def test_the_reference_waits_and_then_keeps_its_distance() -> None:
    assert [reference_place(f, 4) for f in (0, 12, 24, 26, 27, 30, 300)] == [30, 30, 30, 30, 31, 34, 304]
    assert [reference_place(f, 30) for f in (0, 3, 300)] == [30, 33, 330]
    assert reference_place(30_000_000, 17) == 30_000_017


@pytest.mark.parametrize("frames", [3, 6])
def test_a_window_makes_a_block_forget(model: AvatarDiT, frames: int) -> None:
    """Looking back on itself alone, a late block equals the first block of a stream that starts there."""
    given = conditioning()
    latents = latents_of(make_rollout(model, given, local_frames=frames), 7, refresh=False)
    fresh = latents_of(make_rollout(model, given, first_block=6, local_frames=frames), 1, refresh=False)
    assert torch.equal(latents[6], fresh[0]) == (frames == 3)
    unbounded = latents_of(make_rollout(model, given), 7, refresh=False)
    assert torch.equal(unbounded[0], latents[0])
    assert not torch.equal(unbounded[6], latents[6])


@pytest.mark.parametrize("heads", [1, 3, 5])
@pytest.mark.parametrize("grid", [(18, 10), (8, 8), (14, 6), (4, 2)])
def test_any_heads_and_any_grid(heads: int, grid: tuple[int, int]) -> None:
    model = make_dit(dim=60, num_heads=heads, num_layers=2, audio_inject_layers=[1])
    latents = latents_of(make_rollout(model, conditioning(*grid), steps=2, cache_frames=6), 4)
    assert latents.shape == (4, 16, 3, *grid)
    assert latents.isfinite().all()
    assert latents.std() > 0.1


def test_motion_is_packed_from_the_newest_back_and_padded_in_front() -> None:
    packer = FramePacker(16, 12)
    motion = draw(0, 1, 16, 23, 16, 16)
    packed = packer(motion)
    assert packed.shape == (1, 64 + 16 + 4 * 4, 12)
    assert torch.equal(packed, packer(motion[:, :, 4:]))
    short = packer(motion[:, :, -2:])
    zeros = torch.cat((torch.zeros(1, 16, 17, 16, 16), motion[:, :, -2:]), dim=2)
    assert torch.equal(short, packer(zeros))
    changed = motion.clone()
    changed[:, :, -1] += 1
    moved = (packer(changed) != packed).any(-1)[0]
    assert moved[:64].all()
    assert not moved[64:].any()


def heard(model: AvatarDiT, given: Conditioning) -> torch.Tensor:
    return latents_of(make_rollout(model, given), 5)


def test_an_actor_without_a_place_is_not_heard(model: AvatarDiT) -> None:
    given = conditioning(actors=2)
    masks = torch.ones(2, 12, 8, 4)
    masks[1] = 0
    alone = replace(given, masks=MaskTrack(masks))
    swapped = replace(alone, audio=Swapped(given.audio))
    assert torch.equal(heard(model, swapped), heard(model, alone))
    both = replace(given, masks=MaskTrack(torch.ones(2, 12, 8, 4)))
    assert not torch.equal(heard(model, replace(both, audio=Swapped(given.audio))), heard(model, both))


@dataclass(frozen=True)
class Swapped:
    """The same voices, but the second actor says something else."""

    source: Voices

    def block(self, index: int) -> torch.Tensor:
        features = self.source.block(index).clone()
        features[1] = draw(index, *features[1].shape)
        return features


def test_one_masked_everywhere_is_one_unmasked_and_actors_are_summed(model: AvatarDiT) -> None:
    given = conditioning()
    everywhere = replace(given, masks=MaskTrack(torch.ones(1, 3, 8, 4)))
    assert torch.equal(heard(model, everywhere), heard(model, given))


def test_masks_that_move_act_in_their_block(model: AvatarDiT) -> None:
    masks = torch.ones(1, 9, 8, 4)
    masks[:, 6:, :4] = 0
    given = replace(conditioning(), masks=MaskTrack(masks))
    follows = heard(model, given)
    stays = heard(model, replace(given, masks=MaskTrack(masks, follow=False)))
    assert torch.equal(follows[:2], stays[:2])
    assert not torch.equal(follows[2], stays[2])
    assert torch.equal(stays, heard(model, conditioning()))


def test_bfloat16_stays_close_to_float32() -> None:
    exact = latents_of(make_rollout(make_dit(), conditioning()), 6)
    model = make_dit(torch.bfloat16)
    rollout = make_rollout(model, conditioning())
    rounded = latents_of(rollout, 6)
    caches = rollout.caches
    held = [t for c in (*caches.rings, caches.sink, caches.scratch) for t in (c.k, c.v)]
    assert {t.dtype for t in held} == {rounded.dtype} == {torch.bfloat16}
    assert rounded.isfinite().all()
    error = (rounded.float() - exact).square().mean().sqrt() / exact.std()
    assert 1e-4 < error < 0.03, float(error)
