"""What else a live session promises: prompts, positions, memory, ends."""

from __future__ import annotations

import gc
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import liveavatar
from liveavatar.live.avatar import Avatar
from liveavatar.live.session import LiveSession
from liveavatar.live.sound import as_mono
from liveavatar.live.turns import Turns
from liveavatar.memory.readings import Resident
from liveavatar.models.speech import WindowAudio
from liveavatar.ops.rope import coarse_positions, grid_rotations
from liveavatar.sampling.noise import CounterNoise
from tests.live.scene import WORDS, alive, pcm
from tests.running import latents_of
from tests.scene import conditioning, make_dit, make_rollout, sink_of


def spoken(session: LiveSession, seconds: float = 2.0) -> LiveSession:
    session.push(pcm(seconds))
    session.finish()
    return session


@pytest.fixture(scope="module")
def base(avatar: Avatar, image: Path) -> torch.Tensor:
    return latents_of(list(spoken(avatar.session(image, decode=False))))


def test_a_prompt_changes_the_next_block_and_none_before(avatar: Avatar, image: Path, base: torch.Tensor) -> None:
    session = spoken(avatar.session(image, decode=False))
    assert session.prompt == "A person speaks."
    before = list(islice(session, 2))
    session.prompt = "A cat on a roof, at night."
    found = latents_of(before + list(session))
    assert session.prompt == "A cat on a roof, at night."
    assert torch.equal(found[:2], base[:2])
    assert all(not torch.equal(found[block], base[block]) for block in range(2, len(base)))
    again = spoken(avatar.session(image, decode=False))
    again.set(prompt="Something else.")  # the last word before a block counts
    again.set(prompt="A person speaks.")
    assert torch.equal(latents_of(list(again)), base)


def test_every_kind_of_picture_is_taken(avatar: Avatar, image: Path, base: torch.Tensor) -> None:
    opened = Image.open(image)
    for given in (str(image), image.read_bytes(), opened, np.asarray(opened.convert("RGB"))):
        session = avatar.session(given, decode=False)
        session.push(pcm(2.0))
        assert torch.equal(next(session).latents[0], base[0])
        session.close()
    for wrong, words in ((b"no picture", "no PNG"), (np.zeros((4, 4)), "uint8"), ("/nowhere.png", "does not exist")):
        with pytest.raises(ValueError, match=rf"request\.image.*{words}"):
            avatar.session(wrong)
    with pytest.raises(ValueError, match=r"request\.size"):
        avatar.session(image, size="huge")
    with pytest.raises(ValueError, match="start_block"):
        avatar.session(image, start_block=-1)


def test_a_stream_may_begin_as_if_it_had_run_for_days(avatar: Avatar, image: Path) -> None:
    """Numbers go on from there; the rings turn; the same start gives the same stream."""
    streams = []
    for _ in range(2):
        session = spoken(avatar.session(image, decode=False, start_block=1_000_000), 4.4)
        streams.append(list(session))
    chunks = streams[0]
    assert [chunk.index for chunk in chunks] == list(range(1_000_000, 1_000_010))
    assert chunks[0].start == 0
    assert len(chunks) > 2 * 4  # a ring holds four blocks
    late = latents_of(chunks)
    assert torch.isfinite(late).all()
    assert torch.equal(late, latents_of(streams[1]))
    early = latents_of(list(spoken(avatar.session(image, decode=False, start_block=100), 4.4)))
    assert abs(float(late.std() / early.std()) - 1) < 0.05


def test_all_positions_moved_by_a_million_blocks_change_nothing_but_rounding() -> None:
    """Block 1,000,000 is block 100 with all places moved: the motion, whose place is fixed, is moved along here."""

    class Moved(CounterNoise):
        def __init__(self, by: int) -> None:
            super().__init__(0)
            self.by = by

        def block(self, block: int, shape: tuple[int, ...]) -> torch.Tensor:
            return super().block(block - self.by, shape)

    found = []
    for first in (100, 1_000_000):
        by = first - 100
        given = conditioning(h=16, w=16)
        voices, given = given.audio, given
        object.__setattr__(given, "audio", type("Heard", (), {"block": lambda _, n, v=voices, m=by: v.block(n - m)})())
        rollout = make_rollout(make_dit(), given, steps=2, first_block=first)
        rollout.noise, rollout.distance = Moved(by), lambda block, step: 7
        rollout._motion_turns = _motion_turns(rollout.grid, rollout.dit.head_dim, 3 * by)
        own, grid = rollout._reference_turns, rollout.grid
        assert rollout.dit.head_dim == 16
        rollout._reference_turns = (  # type: ignore[method-assign]  # the prefill stands at the start of the count
            lambda frame, distance, own=own, grid=grid, by=by: (
                own(frame, distance) if frame else grid.reference_turns(30 + 3 * by, 16)
            )
        )
        blocks = list(rollout.blocks(9, sink_of(rollout)))
        found.append(torch.cat([block.latents for block in blocks]))
    assert float((found[0] - found[1]).abs().max()) < 2e-4
    assert float(found[0].std()) > 0.1


def _motion_turns(grid: object, head_dim: int, by: int) -> torch.Tensor:
    """`Grid.motion_turns`, so many latent frames later."""
    from liveavatar.models.dit.context import Grid

    assert isinstance(grid, Grid)
    parts = [grid_rotations([by - 1], range(grid.rows), range(grid.columns), head_dim)]
    for pooled, frames in ((2, [-3]), (4, [-19, -14, -9, -4])):
        rows = coarse_positions(grid.rows, grid.h // (2 * pooled))
        columns = coarse_positions(grid.columns, grid.w // (2 * pooled))
        parts.append(grid_rotations([by + frame for frame in frames], rows, columns, head_dim))
    moved = torch.cat(parts)
    if by == 0:
        assert torch.equal(moved, grid.motion_turns(head_dim))
    return moved


def test_the_voice_is_heard_the_same_after_a_million_blocks(avatar: Avatar) -> None:
    heard = []
    for first in (100, 1_000_000):  # five blocks are a whole number of the encoder's turns
        shift = (first - 100) * 12 * 640
        voice = torch.from_numpy(np.random.default_rng(0).standard_normal(12 * 640 * 8).astype(np.float32))

        class Late:
            def read(self, start: int, stop: int, by: int = shift, sound: torch.Tensor = voice) -> torch.Tensor:
                found = torch.zeros(stop - start)
                low, high = start - by - 98 * 7680, stop - by - 98 * 7680
                inside = sound[max(0, low) : max(0, high)]
                found[max(0, -low) : max(0, -low) + len(inside)] = inside
                return found

        window = WindowAudio(avatar.models.parts.speech, [Late()], 0.4, 0.2, 1.0, 3)
        heard.append(torch.cat([window.block(first + number) for number in range(4)]))
    assert torch.equal(heard[0], heard[1])
    assert float(heard[0].std()) > 0


def test_memory_is_flat_over_hundreds_of_blocks(avatar: Avatar, image: Path) -> None:
    session, clock = alive(avatar, image, 0.1)
    resident, readings = Resident(), {}

    def tick() -> None:  # a voice that comes and goes: one second in four
        session.push(pcm(1.0))
        clock.plan(4.0, tick)

    clock.plan(1.0, tick)
    for number, chunk in enumerate(islice(session, 200)):
        chunk.latents.clear()
        if number in (80, 199):
            gc.collect()
            tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
            readings[number] = (tensors, session.stats.held_bytes, resident())
    session.close()
    (tensors_before, held, before), (tensors_after, held_after, after) = readings[80], readings[199]
    assert tensors_after <= tensors_before
    assert held_after == held
    assert after - before < 4_000_000
    assert session.stats.held_bytes == 0


def test_the_cost_of_a_session_is_known_before_it_begins(avatar: Avatar, image: Path) -> None:
    foreseen = avatar.cost(image)
    session = avatar.session(image)
    session.push(pcm(29.0))
    list(islice(session, 6))
    held = session.stats.held_bytes
    session.close()
    assert held <= foreseen <= 1.5 * held
    assert avatar.cost(image, "128*128") == avatar.cost(image)  # a small picture is not enlarged
    assert avatar.cost(size="128*128") > foreseen


def test_closing_ends_whoever_waits_and_frees_the_stream(avatar: Avatar, image: Path) -> None:
    session = avatar.session(image, decode=False)
    assert avatar.sessions[session.number] is session
    found: list[int] = []
    waiting = threading.Thread(target=lambda: found.append(len(list(session))))
    waiting.start()
    session.close()
    waiting.join(30)
    assert found == [0]
    assert session.stream is None
    assert session.number not in avatar.sessions
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.push(pcm(0.1))


def test_a_failure_is_told_to_whoever_takes_and_whoever_pushes(avatar: Avatar, image: Path, base: torch.Tensor) -> None:
    session = avatar.session(image, decode=False)
    session.push(pcm(2.0))
    first = next(session)
    assert session.stream is not None

    class Broken:
        def push(self, index: int, latents: object) -> object:
            raise OSError("the decoder fell over")

    session.stream.decoding = Broken()  # type: ignore[assignment]
    with pytest.raises(OSError, match="fell over"):
        next(session)
    with pytest.raises(ValueError, match="has ended: the decoder fell over"):
        session.push(pcm(0.1))
    assert list(session) == []
    assert torch.equal(first.latents[0], base[0])
    assert torch.equal(latents_of(list(spoken(avatar.session(image, decode=False)))), base)  # others are not harmed


def test_sound_that_is_none_is_refused() -> None:
    for wrong, words in (
        (b"abc", "odd byte"),
        (np.zeros(4, np.uint8), "type uint8"),
        (np.zeros((2, 2, 2), np.float32), "shape"),
        (np.array([np.nan], np.float32), "NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            as_mono(wrong, 16_000)
    with pytest.raises(ValueError, match="rate=7"):
        as_mono(np.zeros(4, np.float32), 7)
    stereo = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, -1.0]], np.float32)
    assert np.array_equal(as_mono(stereo, 16_000), as_mono(stereo.T.copy(), 16_000))
    assert np.array_equal(as_mono(np.array([16384], "<i2").tobytes(), 16_000), [0.5])


def test_turns_are_taken_in_the_order_of_asking() -> None:
    turns, order = Turns(), []

    def take(number: int) -> None:
        with turns:
            order.append(number)

    threads = []
    with turns:
        for number in range(4):
            threads.append(threading.Thread(target=take, args=(number,)))
            threads[-1].start()
            while len(turns._waiting) < number + 2:
                pass
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]


def test_what_cannot_be_live_is_refused_and_a_closed_avatar_says_so(image: Path) -> None:
    with pytest.raises(ValueError, match="rollout=clipwise"):
        liveavatar.load("micro", [*WORDS, "rollout=clipwise"])
    with pytest.raises(ValueError, match=r"parallel\.hoist=3"):
        liveavatar.load("micro", [*WORDS, "parallel.hoist=3"])
    avatar = liveavatar.load("micro", WORDS)
    assert not avatar.trained
    session = avatar.session(image, decode=False)
    avatar.close()
    assert session.closed
    with pytest.raises(ValueError, match="the avatar is closed"):
        avatar.session(image)
