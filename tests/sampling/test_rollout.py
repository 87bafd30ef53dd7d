"""The rollout loop: every order that respects the lattice gives the same numbers; streams do not touch one another."""

import random
from collections.abc import Iterator

import pytest
import torch

from liveavatar.models.dit.model import AvatarDiT
from liveavatar.sampling.lattice import Cell, Round, sequential
from tests.scene import conditioning, draw, latents_of, make_dit, make_rollout, sink_of, sink_state

BLOCKS, STEPS = 6, 4
LONG_CLIP = {"frames_per_clip": 12 * BLOCKS}


@pytest.fixture(scope="module")
def model() -> AvatarDiT:
    return make_dit()


def waves(joint: bool, newest_first: bool) -> Iterator[Round]:
    """Cells (b, s) with b + s equal, together in a round or one after another."""
    for wave in range(BLOCKS + STEPS - 1):
        cells = [Cell(wave - s, s) for s in range(STEPS) if 0 <= wave - s < BLOCKS]
        cells = cells if newest_first else cells[::-1]
        if joint:
            yield tuple(cells)
        else:
            yield from ((cell,) for cell in cells)


def any_order(seed: int) -> Iterator[Round]:
    """A random order that respects the arrows of the lattice."""
    chooser, done = random.Random(seed), [0] * BLOCKS  # done[b]: steps that block b has behind it
    while any(steps < STEPS for steps in done):
        ready = [b for b in range(BLOCKS) if done[b] < STEPS and (b == 0 or done[b - 1] > done[b])]
        block = chooser.choice(ready)
        yield (Cell(block, done[block]),)
        done[block] += 1


@pytest.mark.parametrize(
    "order",
    [waves(False, True), waves(False, False), waves(True, True), waves(True, False), any_order(0), any_order(1)],
    ids=["singles", "singles_oldest_first", "joint", "joint_oldest_first", "random_0", "random_1"],
)
def test_every_order_of_the_lattice_gives_the_same_numbers(model: AvatarDiT, order: Iterator[Round]) -> None:
    given = conditioning()
    expected = latents_of(make_rollout(model, given, **LONG_CLIP), BLOCKS)
    rounds = list(order)
    assert rounds != list(sequential(0, BLOCKS, STEPS))
    assert sorted(cell for cells in rounds for cell in cells) == [(b, s) for b in range(BLOCKS) for s in range(STEPS)]
    rollout = make_rollout(model, given, **LONG_CLIP)
    walked = list(rollout.walk(rounds, sink_of(rollout)))
    assert [block.index for block in walked] == list(range(BLOCKS))
    assert torch.equal(torch.stack([block.latents[0] for block in walked]), expected)


@pytest.mark.parametrize("in_flight", [2, 3, 4])
def test_cells_in_flight_change_nothing_even_where_the_sink_is_refreshed(model: AvatarDiT, in_flight: int) -> None:
    """Blocks of the first clip keep the old sink though those of the second clip already see the new one."""
    given = conditioning()
    for frames_per_clip in (24, 48):
        settings = {"frames_per_clip": frames_per_clip}
        expected = latents_of(make_rollout(model, given, **settings), 7)
        flying = make_rollout(model, given, cells_in_flight=in_flight, **settings)
        assert torch.equal(latents_of(flying, 7), expected)


def test_an_order_against_the_arrows_gives_other_numbers(model: AvatarDiT) -> None:
    given = conditioning()
    expected = latents_of(make_rollout(model, given, **LONG_CLIP), 2)
    wrong = [(Cell(1, s),) for s in range(STEPS)] + [(Cell(0, s),) for s in range(STEPS)]
    rollout = make_rollout(model, given, **LONG_CLIP)
    with torch.no_grad():
        model([sink_state(rollout)])
    walked = {block.index: block.latents[0] for block in rollout.walk(wrong, sink_of(rollout))}
    assert not torch.equal(walked[1], expected[1])


def test_interleaved_streams_over_one_model_equal_streams_alone(model: AvatarDiT) -> None:
    scenes = [(conditioning(seed=0), 0, {}), (conditioning(8, 16, 2, seed=50), 7, {"cache_frames": 6})]
    alone = [latents_of(make_rollout(model, given, seed=seed, **more), 6) for given, seed, more in scenes]
    rollouts = [make_rollout(model, given, seed=seed, **more) for given, seed, more in scenes]
    streams = [rollout.blocks(6, sink_of(rollout)) for rollout in rollouts]
    for index in range(6):
        for stream, expected in zip(streams, alone, strict=True):
            assert torch.equal(next(stream).latents[0], expected[index])


def test_every_input_is_heard(model: AvatarDiT) -> None:
    """Picture, motion, words, voice, pose, noise and distance each change the latents."""
    given = conditioning()
    base = latents_of(make_rollout(model, given), 1)
    for name in ("text", "reference", "motion"):
        changed = type(given)(**(vars(given) | {name: draw(99, *getattr(given, name).shape)}))
        assert not torch.equal(latents_of(make_rollout(model, changed), 1), base), name
    for name, part in (("audio", conditioning(seed=9).audio), ("pose", _Pose())):
        changed = type(given)(**(vars(given) | {name: part}))
        assert not torch.equal(latents_of(make_rollout(model, changed), 1), base), name
    other = make_rollout(model, given)
    other.distance = lambda block, step: 30
    assert not torch.equal(latents_of(other, 6)[5], latents_of(make_rollout(model, given), 6)[5])
    assert not torch.equal(latents_of(make_rollout(model, given, seed=1), 1), base)


class _Pose:
    def block(self, index: int) -> torch.Tensor:
        return draw(index, 1, 16, 3, 16, 8)


def test_the_voice_of_a_block_changes_nothing_before_it(model: AvatarDiT) -> None:
    given = conditioning()
    base = latents_of(make_rollout(model, given), 4)

    class Later:
        def block(self, index: int) -> torch.Tensor:
            return given.audio.block(index if index < 2 else index + 500)

    changed = type(given)(**(vars(given) | {"audio": Later()}))
    found = latents_of(make_rollout(model, changed), 4)
    assert torch.equal(found[:2], base[:2])
    assert not torch.equal(found[2], base[2])
    assert not torch.equal(found[3], base[3])


def test_the_refresh_acts_from_the_second_clip_on(model: AvatarDiT) -> None:
    given = conditioning()
    settings = {"frames_per_clip": 24}
    with_refresh = latents_of(make_rollout(model, given, **settings), 4)
    without = latents_of(make_rollout(model, given, **settings), 4, refresh=False)
    assert torch.equal(with_refresh[:2], without[:2])
    assert not torch.equal(with_refresh[2], without[2])


def test_memory_does_not_grow_with_the_stream(model: AvatarDiT) -> None:
    rollout = make_rollout(model, conditioning())
    before = rollout.caches.nbytes
    stream = rollout.blocks(None, sink_of(rollout))
    storages = [ring.k.data_ptr() for ring in rollout.caches.rings]
    for _ in range(6):
        next(stream)
    assert rollout.caches.nbytes == before
    assert [ring.k.data_ptr() for ring in rollout.caches.rings] == storages
