"""Conditioning made ready ahead: the same bits, each product once, in rooms that stay; and prompts that change."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from liveavatar.models.dit.model import AvatarDiT
from liveavatar.sampling.lattice import with_next
from liveavatar.sampling.rollout import Rollout
from tests.models.dit.test_units import Recorder
from tests.scene import conditioning, draw, latents_of, make_dit, make_rollout, sink_of

BLOCKS, STEPS, CLIP = 5, 4, {"frames_per_clip": 24}  # the sink is refreshed, and the ring wraps


@pytest.fixture
def model() -> AvatarDiT:
    return make_dit()


def plain(model: AvatarDiT, **more: int) -> Rollout:
    """A rollout whose cells each make their own conditioning."""
    model.hoist = False
    rollout = make_rollout(model, conditioning(actors=more.pop("actors", 1)), **more, **CLIP)
    model.hoist = True
    assert rollout.hoisted is None
    return rollout


def hoisted(model: AvatarDiT, **more: int) -> Rollout:
    return make_rollout(model, conditioning(actors=more.pop("actors", 1)), **more, **CLIP)


@pytest.mark.parametrize(
    ("cells", "actors", "dtype"),
    [(1, 1, torch.float32), (2, 2, torch.float32), (3, 1, torch.float32), (4, 2, torch.bfloat16)],
)
def test_latents_are_those_of_cells_that_make_their_own(cells: int, actors: int, dtype: torch.dtype) -> None:
    model = make_dit(dtype)
    expected = latents_of(plain(model, actors=actors), BLOCKS)
    assert torch.equal(latents_of(hoisted(model, actors=actors, cells_in_flight=cells), BLOCKS), expected)


@pytest.mark.parametrize(("ahead", "cells"), [(3, 1), (4, 3), (9, 4)])
def test_voices_of_several_blocks_may_be_prepared_at_once(ahead: int, cells: int) -> None:
    model, asked = make_dit(), []
    truth = latents_of(plain(model), BLOCKS)
    model.hoist, model.residency = ahead, Recorder()
    rollout = hoisted(model, cells_in_flight=cells)
    audio = rollout.conditioning.audio
    rollout.hoisted.audio = lambda block: asked.append(block) or audio.block(block)  # type: ignore[union-attr]
    assert torch.equal(latents_of(rollout, BLOCKS), truth)
    assert asked == list(range(BLOCKS))  # each once, and none past the end
    passes = model.residency.passes
    assert sum("embed/voice" in names for names in passes) == -(-BLOCKS // ahead)


def test_a_window_and_another_start_change_nothing(model: AvatarDiT) -> None:
    found = []
    for hoist in (True, False):
        model.hoist = hoist
        found.append(latents_of(make_rollout(model, conditioning(), first_block=3, local_frames=6, **CLIP), 3))
    assert torch.equal(*found)


@pytest.mark.parametrize("cells", [1, 4])
def test_each_product_is_made_once_a_run_a_prompt_or_a_block(model: AvatarDiT, cells: int) -> None:
    calls: Counter[str] = Counter()
    for name, unit in model.units().items():
        for kind, modules in unit.cold.items():
            for module in modules:
                key = f"{name}.{module}/{kind}"
                unit.get_submodule(module).register_forward_hook(lambda *_, key=key: calls.update([key]))
    real, rows = model.embed.embed_time, []  # it takes the weights of its layers, and does not call them
    model.embed.embed_time = lambda timesteps: rows.append(timesteps) or real(timesteps)  # type: ignore[method-assign]
    latents_of(hoisted(model, cells_in_flight=cells), BLOCKS)
    assert [len(row) for row in rows] == [1] * (STEPS + 1)  # one by one, as in a cell
    often = {"prompt": 1, "voice": BLOCKS}
    assert calls == {key: often[key.partition("/")[2]] for key in calls}
    assert len(calls) == 2 + 3 * 3 + 2 * (1 + 3)
    assert all(part in str(calls) for part in ("cross_attn.norm_k", "norm.linear", "attention.v", "audio_encoder"))


@pytest.mark.parametrize("cells", [1, 2, 4])
def test_every_pass_is_announced_by_the_one_before_it(model: AvatarDiT, cells: int) -> None:
    """So that what is fetched ahead is what is needed next, also where voices are prepared in between."""
    model.residency = recorder = Recorder()
    latents_of(hoisted(model, cells_in_flight=cells), BLOCKS)
    assert all(then is not None for then in recorder.announced)
    for then, names in zip(recorder.announced, recorder.passes[1:], strict=False):
        assert [name for name in then if name in names] == names
        assert then[: len(names)] == names
    assert recorder.announced[-1] == []
    assert recorder.held == recorder.passes
    preparing = [names for names in recorder.passes if "/" in names[0]]
    assert len(preparing) == BLOCKS
    assert preparing[0][0] == "embed/steps"
    assert preparing[1:] == [
        ["embed/voice", "adain.0/voice", "injectors.0/voice", "adain.1/voice", "injectors.1/voice"]
    ] * (BLOCKS - 1)


def test_a_rollout_goes_with_its_last_reference(model: AvatarDiT) -> None:
    """Its caches are large: they cannot wait for the garbage collector."""
    rollout = hoisted(model)
    latents_of(rollout, 1)
    gone = weakref.ref(rollout)
    gc.disable()
    del rollout
    try:
        assert gone() is None
    finally:
        gc.enable()


def rooms(rollout: Rollout) -> set[int]:
    assert rollout.hoisted is not None
    return {tensor.data_ptr() for tensor in rollout.hoisted.tensors}


@pytest.mark.parametrize("cells", [1, 3])
def test_rooms_are_made_once_and_used_again(model: AvatarDiT, cells: int) -> None:
    rollout = hoisted(model, cells_in_flight=cells)
    stream = rollout.blocks(None, sink_of(rollout))
    for _ in range(cells):
        next(stream)
    before, size = rooms(rollout), rollout.hoisted_bytes
    for _ in range(5):
        next(stream)
        assert rooms(rollout) == before
    assert rollout.hoisted_bytes == size
    stream.close()


@pytest.mark.parametrize(("actors", "cells"), [(1, 1), (2, 3)])
def test_bytes_are_those_of_one_prompt_and_the_voices_under_way(model: AvatarDiT, actors: int, cells: int) -> None:
    dim, words, layers, injectors, size = 32, 24, 3, 2, 4
    rollout = hoisted(model, actors=actors, cells_in_flight=cells)
    assert rollout.hoisted_bytes == 0
    latents_of(rollout, BLOCKS)
    steps = (STEPS + 1) * 7 * dim
    prompt = words * dim * (1 + 2 * layers)
    voice = actors * 3 * dim * (5 + 1 + injectors * (2 + 2 * 5))
    assert rollout.hoisted_bytes == size * (steps + prompt + cells * voice)
    assert plain(model).hoisted_bytes == 0


def changed(rollout: Rollout, prompts: dict[int, Tensor], when: int) -> Tensor:
    """The latents of a stream whose prompt changes from those blocks on, which is said after block `when`."""
    found = []
    for block in rollout.blocks(7, sink_of(rollout)):
        found.append(block.latents[0])
        if block.index == when:
            for at, text in prompts.items():
                assert rollout.change_prompt(text, at) == at
    return torch.stack(found)


@pytest.mark.parametrize("cells", [1, 2, 4])
def test_a_prompt_may_change_in_mid_stream(model: AvatarDiT, cells: int) -> None:
    """Whatever is under way keeps its prompt: the schedule does not matter, and hoisting does not either."""
    prompts = {4: draw(77, 1, 9, 24), 6: draw(78, 1, 3, 24)}
    truth = changed(plain(model), prompts, when=0)
    rollout = hoisted(model, cells_in_flight=cells)
    assert torch.equal(changed(rollout, prompts, when=0), truth)
    assert rollout.hoisted is not None
    assert len(rollout.hoisted.prompts) <= 1 + (cells > 1) + (cells > 2)
    same = latents_of(plain(model), 7)
    assert torch.equal(same[:4], truth[:4])
    assert not any(torch.equal(same[block], truth[block]) for block in (4, 5, 6))


def test_a_prompt_cannot_change_for_blocks_under_way_or_divided_layers(model: AvatarDiT) -> None:
    rollout = hoisted(model, cells_in_flight=2)
    stream = rollout.blocks(None, sink_of(rollout))
    next(stream)
    text = draw(0, 1, 2, 24)
    with pytest.raises(ValueError, match="block 0 cannot take another prompt: the first one not taken up is"):
        rollout.change_prompt(text, 0)
    assert rollout.change_prompt(text) > 0
    stream.close()
    model.stage = range(2)
    with pytest.raises(ValueError, match="layers are divided among ranks"):
        rollout.change_prompt(text)


def test_rounds_come_with_those_after_them() -> None:
    def rounds() -> Iterator[tuple[int, ...]]:
        yield from ((1,), (2,), (3,))

    assert list(with_next(rounds())) == [((1,), (2,)), ((2,), (3,)), ((3,), None)]  # type: ignore[arg-type]
    assert list(with_next([])) == []
