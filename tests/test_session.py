"""The session: a request in, chunks out; what each part of a request changes, and what it cannot change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from liveavatar.intake import SpeechSettings
from liveavatar.models.speech import FullAudio, WindowAudio
from liveavatar.types import BLOCK_FRAMES, FPS, SPEECH_RATE, AvatarRequest
from tests.running import (
    frames_of,
    fresh_parts,
    latents_of,
    micro_parts,
    micro_session,
    picture,
    small_request,
    speech,
    write_wav,
)

WINDOW = SpeechSettings("window", left_s=0.4, right_s=0.2, norm_s=1.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[AvatarRequest, torch.Tensor, torch.Tensor]:
    """A request, its latents and its frames."""
    request = small_request(tmp_path_factory.mktemp("base"), seconds=1.0)
    chunks = list(micro_session(steps=2, speech=WINDOW).run(request))
    return request, latents_of(chunks), frames_of(chunks)


@pytest.mark.parametrize("seconds", [0.1, 0.48, 0.8, 1.3])
def test_picture_and_sound_last_as_long_as_the_voice(tmp_path: Path, seconds: float) -> None:
    session = micro_session()
    stream = session.prepare(small_request(tmp_path, seconds))
    chunks = list(session.chunks(stream))
    frames = sum(len(chunk.frames) for chunk in chunks)
    assert abs(frames - max(seconds * FPS, BLOCK_FRAMES)) <= 1
    assert frames == stream.info.total_frames
    assert sum(len(chunk.audio) for chunk in chunks) * FPS == frames * stream.info.audio_rate


def test_chunks_are_counted_and_carry_what_they_are_made_of(tmp_path: Path) -> None:
    session = micro_session()
    stream = session.prepare(small_request(tmp_path, 1.3))
    heard = stream.gathered.voice.at(stream.info.audio_rate)
    chunks = list(session.chunks(stream))
    assert [chunk.index for chunk in chunks] == list(range(stream.gathered.blocks))
    assert [list(chunk.latents) for chunk in chunks] == [[chunk.index] for chunk in chunks]
    shown = 0
    for chunk in chunks:
        assert chunk.start == shown
        assert chunk.frames.shape[1:] == (3, stream.info.height, stream.info.width)
        assert chunk.audio_rate == stream.info.audio_rate
        low = shown * chunk.audio_rate // FPS
        expected = heard[low : low + len(chunk.audio)]
        assert np.array_equal(chunk.audio[: len(expected)], expected)  # what is under these frames, and no other
        assert not chunk.audio[len(expected) :].any()  # silence where the voice is over
        assert len(chunk.audio) * FPS == len(chunk.frames) * chunk.audio_rate
        assert {"denoise", "decode", "wall"} <= set(chunk.timings)
        shown += len(chunk.frames)
    assert len(chunks[0].frames) == BLOCK_FRAMES - 3  # the decoder settles on the first three


def test_max_seconds_cuts_the_voice_and_changes_nothing_before(base: tuple, tmp_path: Path) -> None:
    request, latents, frames = base
    chunks = list(micro_session(steps=2, speech=WINDOW).run(replace(request, max_seconds=0.6)))
    assert sum(len(chunk.frames) for chunk in chunks) == 15
    assert torch.equal(latents_of(chunks)[:1], latents[:1])
    assert torch.equal(frames_of(chunks)[:9], frames[:9])
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"request\.max_seconds"):
            micro_session().prepare(replace(request, max_seconds=wrong))


def test_the_same_seed_gives_the_same_latents_and_frames(base: tuple) -> None:
    request, latents, frames = base
    again = list(micro_session(steps=2, speech=WINDOW).run(request))
    assert torch.equal(latents_of(again), latents)
    assert torch.equal(frames_of(again), frames)


@pytest.mark.parametrize("part", ["image", "audio", "prompt", "seed"])
def test_every_part_of_a_request_changes_the_latents(base: tuple, tmp_path: Path, part: str) -> None:
    request, latents, _ = base
    other = {
        "image": lambda: picture(tmp_path / "other.png", seed=1),
        "audio": lambda: (write_wav(tmp_path / "other.wav", speech(1.0, seed=1)),),
        "prompt": lambda: "A person speaks!",
        "seed": lambda: 1,
    }[part]()
    changed = latents_of(list(micro_session(steps=2, speech=WINDOW).run(replace(request, **{part: other}))))
    assert changed.shape == latents.shape
    assert float((changed - latents).abs().max()) > 1e-4
    # from the first block on
    assert not torch.equal(changed[0], latents[0])


def test_the_voice_of_a_block_changes_nothing_before_it_but_the_look_ahead(tmp_path: Path) -> None:
    """The voice is replaced from where block 2 stops hearing: blocks 0 to 2 must not notice, block 3 must."""
    session = micro_session(speech=WINDOW)
    sound = speech(2.4, seed=0)
    request = small_request(tmp_path, audio=(write_wav(tmp_path / "a.wav", sound),))
    stream = session.prepare(request)
    audio = stream.gathered.conditioning.audio
    assert isinstance(audio, WindowAudio)
    declared = (3 * BLOCK_FRAMES - 3) * SPEECH_RATE // FPS + round(WINDOW.right_s * SPEECH_RATE)
    assert audio.span(2)[1] == declared
    sound[declared:] = speech(2.4, seed=1)[declared:]
    changed = replace(request, audio=(write_wav(tmp_path / "b.wav", sound),))
    before = latents_of(list(session.chunks(stream)))
    after = latents_of(list(session.run(changed)))
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3], after[3])


@pytest.mark.parametrize("context", ["full", "window"])
def test_sound_and_picture_are_aligned(tmp_path: Path, context: str) -> None:
    """Frame k of the video is conditioned on sound frame k, although three pictures are dropped before frame 0."""
    request = small_request(tmp_path, 1.5)
    settings = replace(WINDOW, context=context)
    tracks = []
    for align in (True, False):
        session = micro_session(speech=settings, align_sound=align)
        audio = session.prepare(request).gathered.conditioning.audio
        assert isinstance(audio, FullAudio if context == "full" else WindowAudio)
        tracks.append(torch.cat([audio.block(index) for index in range(3)], dim=-1))
    aligned, early = tracks
    if context == "full":
        assert torch.equal(aligned[..., 3:], early[..., :-3])
        assert torch.equal(aligned[..., :4], early[..., :1].expand_as(aligned[..., :4]))
    assert not torch.equal(aligned, early)
    # the click in video frame 20 moves the features of frame 20, which the stream counts as its 23rd picture
    sound = np.zeros(round(1.5 * SPEECH_RATE))
    silent = write_wav(tmp_path / "silent.wav", sound)
    sound[20 * 640 : 21 * 640] = 0.9
    clicked = write_wav(tmp_path / "clicked.wav", sound)
    session = micro_session(speech=replace(settings, context="window", right_s=0.0, left_s=0.0))
    found = []
    for file in (silent, clicked):
        audio = session.prepare(replace(request, audio=(file,))).gathered.conditioning.audio
        found.append(torch.cat([audio.block(index) for index in range(3)], dim=-1))
    moved = (found[1] - found[0]).abs().amax(dim=(0, 1, 2))
    assert not moved[:12].any()
    assert moved[23] > 0


def test_whole_clips_run_on_to_the_end_of_the_clip(tmp_path: Path) -> None:
    request = small_request(tmp_path, 0.6)
    session = micro_session(speech=SpeechSettings("full"), whole_clips=True, frames_per_clip=24)
    stream = session.prepare(request)
    chunks = list(session.chunks(stream))
    assert sum(len(chunk.frames) for chunk in chunks) == 24 - 3 == stream.info.total_frames
    assert not chunks[-1].audio[-1000:].any()


def test_a_recording_above_the_limit_is_heard_through_the_window(tmp_path: Path) -> None:
    session = micro_session(speech=SpeechSettings("full", full_limit_s=0.5))
    assert isinstance(session.prepare(small_request(tmp_path, 0.6)).gathered.conditioning.audio, WindowAudio)
    assert isinstance(session.prepare(small_request(tmp_path, 0.4)).gathered.conditioning.audio, FullAudio)


def test_two_sessions_share_weights_and_nothing_else(base: tuple, tmp_path: Path) -> None:
    request, latents, frames = base
    other = small_request(tmp_path, 1.2, seed=5, prompt="Another.")
    alone = latents_of(list(micro_session(steps=2, speech=WINDOW).run(other)))
    first = micro_session(steps=2, speech=WINDOW).run(request)
    second = micro_session(steps=2, speech=WINDOW).run(other)
    mine, theirs = [], []
    while True:
        one, two = next(first, None), next(second, None)
        mine += [one] if one else []
        theirs += [two] if two else []
        if one is None and two is None:
            break
    assert torch.equal(latents_of(mine), latents)
    assert torch.equal(frames_of(mine), frames)
    assert torch.equal(latents_of(theirs), alone)


def test_a_rank_that_shows_nothing_yields_nothing_and_does_the_work(tmp_path: Path) -> None:
    session = micro_session(shows=False)
    stream = session.prepare(small_request(tmp_path, 0.6))
    assert stream.decoding is None
    before = stream.rollout.caches.rings[0].k.clone()
    assert list(session.chunks(stream)) == []
    assert not torch.equal(stream.rollout.caches.rings[0].k, before)
    with pytest.raises(ValueError, match="rollout=clipwise"):
        micro_session(shows=False, mode="clipwise")


def test_parts_are_left_as_they_were(base: tuple) -> None:
    """Weights are shared by all sessions above: none of them may have been written to."""
    fresh = fresh_parts()
    used = micro_parts()
    for name in ("dit", "text", "speech", "codec"):
        pairs = zip(getattr(fresh, name).parameters(), getattr(used, name).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
