"""Silence, speech after it, interruptions and time, on a clock that only the test moves."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from liveavatar.live.avatar import Avatar
from liveavatar.live.pace import Player
from liveavatar.live.session import LiveSession, QueueFull
from liveavatar.live.settings import LiveSettings
from liveavatar.types import VideoChunk
from tests.live.scene import BLOCK_S, FakeClock, alive, pcm

MARGIN_S, LEAD_S, JITTER_S, COST_S = 0.1, 0.5, 0.08, 0.2


def taken(session: LiveSession, clock: FakeClock, count: int) -> list[tuple[float, VideoChunk]]:
    return [(clock.now(), chunk) for chunk in islice(session, count)]


def shown_at(arrivals: list[float], first: float) -> list[float]:
    """When a player begins to show each chunk."""
    begins, dry = [], first
    for number, arrival in enumerate(arrivals):
        begins.append(max(dry, arrival))
        dry = begins[-1] + (9 if number == 0 else 12) / 25
    return begins


def test_silence_is_lived_through_at_the_pace_of_the_clock(avatar: Avatar, image: Path) -> None:
    session, clock = alive(avatar, image, COST_S)
    found = taken(session, clock, 12)
    begins = np.diff(shown_at([when for when, _ in found], found[0][0]))
    assert begins[0] == pytest.approx(9 / 25)
    assert begins[1:] == pytest.approx(BLOCK_S)
    early = [begin - when for begin, (when, _) in zip(shown_at([w for w, _ in found], 0), found, strict=True)]
    assert early[1:] == pytest.approx([MARGIN_S] * 11)  # each ready just before it is needed
    assert not any(chunk.audio.any() for _, chunk in found)
    stats = session.stats
    assert (stats.blocks, stats.silent_blocks, stats.pushed_s) == (12, 12, 0)
    assert stats.stalls == 0
    assert all(not torch.equal(a.latents[a.index], b.latents[b.index]) for (_, a), (_, b) in pairwise(found))
    session.close()


def test_speech_after_silence_begins_with_the_next_block(avatar: Avatar, image: Path) -> None:
    session, clock = alive(avatar, image, COST_S)
    taken(session, clock, 6)
    session.push(pcm(3.0))
    pushed = clock.now()
    found = taken(session, clock, 5)
    assert found[0][1].audio[:100].any()  # from its first frame on
    assert found[0][1].index == 6
    assert session.stats.onset_s == pytest.approx(found[0][0] - pushed)
    assert found[0][0] - pushed <= COST_S + 1e-6  # nothing was waited for
    waits = np.diff([when for when, _ in found[2:]])
    assert waits == pytest.approx(BLOCK_S)  # and yet it does not run ahead by more than lead_s
    session.close()


def test_speech_that_arrives_as_it_is_spoken_is_not_broken_off(avatar: Avatar, image: Path) -> None:
    session, clock = alive(avatar, image, COST_S)
    sound, piece = pcm(2.4), 320
    taken(session, clock, 6)
    for number in range(0, len(sound), piece):  # 20 ms each, and now and then one is late by 60 ms
        late = 0.06 if number // piece % 7 == 3 else 0.0
        clock.plan((number + piece) / 16_000 + late, lambda at=number: session.push(sound[at : at + piece]))
    start = clock.now()
    found = taken(session, clock, 9)
    heard = np.concatenate([chunk.audio for _, chunk in found])
    loud = np.flatnonzero(heard)
    assert (loud[-1] - loud[0] + 1) / 48_000 == pytest.approx(2.4, abs=0.03)  # no silence within
    stats = session.stats
    first = next(number for number, (_, chunk) in enumerate(found) if chunk.audio.any())
    begins = shown_at([when for when, _ in found], 0)
    spoken = begins[first] + np.flatnonzero(found[first][1].audio)[0] / 48_000 - start
    assert spoken <= BLOCK_S + COST_S + MARGIN_S + JITTER_S + 0.02
    assert stats.short_blocks >= 3  # made with less look-ahead than a file has
    assert stats.pauses == 1  # its end
    assert stats.stalls == 0
    session.close()


def test_an_interruption_drops_what_was_not_shown_and_the_next_speech_is_heard(avatar: Avatar, image: Path) -> None:
    session, clock = alive(avatar, image, COST_S)
    session.push(pcm(6.0))
    found = taken(session, clock, 3)
    assert all(chunk.audio.any() for _, chunk in found)
    dropped = session.interrupt()
    assert dropped == pytest.approx(6.0 - (3 * 12 - 3) / 25, abs=1e-3)
    after = taken(session, clock, 3)
    assert not any(chunk.audio.any() for _, chunk in after)
    assert session.stats.queued_s == 0
    session.push(pcm(0.48, seed=2))
    session.finish()
    rest = list(session)
    assert rest[0].audio.any()
    assert session.stats.dropped_s == pytest.approx(dropped)


def test_an_interruption_within_a_block_fades_its_sound(avatar: Avatar, image: Path) -> None:
    session, clock = alive(avatar, image, COST_S)
    session.push(pcm(6.0))
    taken(session, clock, 2)
    clock.plan(LEAD_S + 0.1, session.interrupt)  # while the fourth block is made, or waited for
    third = next(session)
    assert third.audio.any()
    fourth, fifth = next(session), next(session)
    assert not fourth.audio[1000:].any()  # a fade of 20 ms
    assert not fifth.audio.any()
    session.close()


def test_without_keep_alive_nothing_is_made_until_there_is_sound(avatar: Avatar, image: Path) -> None:
    session, clock = alive(avatar, image, COST_S, silence="wait")
    clock.plan(50.0, lambda: session.push(pcm(1.0)))
    start = clock.now()
    first = next(session)
    assert clock.now() - start == pytest.approx(50.0 + COST_S)
    assert first.audio.any()
    assert session.interrupt() > 0.3
    clock.plan(7.0, session.finish)
    assert sum(len(chunk.frames) for chunk in session) == 3  # a stream is never shorter than a block
    assert session.stats.stalls == 0  # there was nothing to make it of


def test_a_block_that_is_late_is_a_stall(avatar: Avatar, image: Path) -> None:
    session, clock = alive(avatar, image, BLOCK_S + 0.12)
    taken(session, clock, 11)
    stats = session.stats
    assert stats.stalls == 10
    assert stats.stall_s == pytest.approx(0.12 * 10 + 0.12, abs=0.02)  # the first chunk is three frames shorter
    assert stats.stall_share == pytest.approx(stats.stall_s / (stats.stall_s + stats.shown_s))
    assert 0.15 < stats.stall_share < 0.25
    session.close()


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_clock_that_jumps_does_not_break_the_pace(avatar: Avatar, image: Path, jump: float) -> None:
    session, clock = alive(avatar, image, COST_S)
    taken(session, clock, 5)
    before = session.stats
    clock.time += jump
    taken(session, clock, 3)
    found = taken(session, clock, 5)
    assert np.diff([when for when, _ in found]) == pytest.approx(BLOCK_S)
    after = session.stats
    assert after.stalls - before.stalls == (1 if jump > 0 else 0)
    assert found[-1][0] - clock.time == 0
    session.close()


def test_a_player_counts_what_comes_late() -> None:
    player = Player(most_s=2.0)
    assert player.due(10.0) == 10.0
    player.arrived(10.0, 0.48, False)
    player.arrived(10.4, 0.48, False)
    assert (player.stalls, player.due(10.5)) == (0, pytest.approx(10.96))
    player.arrived(11.96, 0.48, False)
    assert (player.stalls, player.stall_s) == (1, pytest.approx(1.0))
    player.arrived(99.0, 0.48, True)
    assert player.stalls == 1
    assert player.stall_share == pytest.approx(1.0 / 2.92)
    assert player.due(0.0) == 2.0  # the clock has gone back


def test_sound_that_finds_no_room_waits_or_is_refused(avatar: Avatar, image: Path) -> None:
    session, clock = alive(avatar, image, COST_S, silence="wait", queue_s=1.0, timeout_s=3.0)
    start = clock.now()
    with pytest.raises(QueueFull, match=r"live\.queue_s=1 seconds.*within 3 s.*another thread") as full:
        session.push(pcm(2.5))
    assert full.value.accepted_s == pytest.approx(1.0)
    assert clock.now() - start == pytest.approx(3.0)
    with pytest.raises(QueueFull):
        session.push(pcm(0.5), timeout=0)
    assert clock.now() - start == pytest.approx(3.0)
    stats = session.stats
    assert (stats.refused, stats.queued_s, stats.pushed_s) == (2, pytest.approx(1.0), pytest.approx(1.0))
    clock.plan(0.5, lambda: next(session))  # room is made while it waits
    session.push(pcm(0.25))
    assert session.stats.waited_s == pytest.approx(3.5 + COST_S, abs=1e-6)
    assert session.stats.queued_peak_s <= 1.0 + 1e-6
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.push(pcm(0.1))


def test_an_interruption_ends_a_push_that_waits(avatar: Avatar, image: Path) -> None:
    session, clock = alive(avatar, image, COST_S, silence="wait", queue_s=1.0, timeout_s=9.0)
    clock.plan(1.0, session.interrupt)
    start = clock.now()
    session.push(pcm(4.0))
    assert clock.now() - start == pytest.approx(1.0)
    assert session.stats.queued_s == 0
    assert session.stats.dropped_s == pytest.approx(4.0)  # what was taken in, and what was not yet
    session.close()


def test_pauses_are_shortened_to_catch_up(avatar: Avatar, image: Path) -> None:
    """A microphone after a stall: what it has heard in the meantime waits, and its pauses need not be waited for."""
    session, clock = alive(avatar, image, COST_S, catch_up_s=0.3)
    taken(session, clock, 3)
    pause = np.zeros(16_000, np.int16)
    session.push(np.concatenate([pcm(0.5), pause, pcm(0.5), pause, pcm(0.5)]))
    found = taken(session, clock, 6)
    skipped = session.stats.skipped_s
    assert 1.0 < skipped < 1.75
    heard = np.concatenate([chunk.audio for _, chunk in found])
    loud = np.flatnonzero(heard)
    assert len(loud) / 48_000 == pytest.approx(1.5, abs=0.1)  # no speech is lost
    assert (loud[-1] - loud[0]) / 48_000 == pytest.approx(3.5 - skipped, abs=0.05)
    session.close()


def test_settings_that_cannot_work_name_their_key() -> None:
    for key, value in {"silence": "loud", "queue_s": 0.1, "lead_s": -1, "rate": 100, "timeout_s": "x"}.items():
        with pytest.raises(ValueError, match=rf"live\.{key}="):
            LiveSettings(**{key: value})  # type: ignore[arg-type]
