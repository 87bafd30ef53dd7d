"""Live equals offline: however a voice is cut into pushes, it gives what its file gives."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from liveavatar.live.avatar import Avatar
from liveavatar.live.session import LiveSession
from liveavatar.types import AvatarRequest, VideoChunk
from tests.live.scene import pcm
from tests.running import frames_of, latents_of, write_wav


def offline(avatar: Avatar, image: Path, file: Path, **changes: object) -> list[VideoChunk]:
    asked = {"prompt": "A person speaks.", "size": 64 * 64, "seed": 0} | changes
    return list(avatar.models.run(AvatarRequest(image=image, audio=(file,), **asked)))  # type: ignore[arg-type]


def wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    return write_wav(path, samples / 32767.0, rate)


def in_pieces(session: LiveSession, sound: np.ndarray, rate: int, seed: int) -> None:
    rng, at = np.random.default_rng(seed), 0
    largest = int(rng.choice([40, 700, 5000, 20_000]))
    while at < len(sound):
        step = int(rng.integers(0, largest + 1))  # nothing at all is a push too
        session.push(sound[at : at + step], rate)
        at += step
    session.finish()


@pytest.fixture(scope="module")
def recorded(avatar: Avatar, image: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A voice at 16 kHz, and what its file gives."""
    sound = pcm(1.7)
    return sound, offline(avatar, image, wav(tmp_path_factory.mktemp("wav") / "voice.wav", sound, 16_000))


@pytest.mark.parametrize("seed", range(20))
def test_any_cut_into_pushes_gives_the_latents_of_the_file(
    avatar: Avatar, image: Path, recorded: tuple, seed: int
) -> None:
    sound, expected = recorded
    session = avatar.session(image, decode=False)
    in_pieces(session, sound, 16_000, seed)
    chunks = list(session)
    assert torch.equal(latents_of(chunks), latents_of(expected))
    assert [(chunk.index, chunk.start, len(chunk.frames)) for chunk in chunks] == [
        (chunk.index, chunk.start, len(chunk.frames)) for chunk in expected
    ]


@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (8_000, 1), (48_000, 1)])
def test_any_rate_and_stereo_give_the_frames_and_the_sound_of_the_file(
    avatar: Avatar, image: Path, tmp_path: Path, rate: int, channels: int
) -> None:
    sound = pcm(1.1, seed=3, rate=rate)
    sound = np.stack([sound, pcm(1.1, seed=4, rate=rate)], axis=1) if channels == 2 else sound
    expected = offline(avatar, image, wav(tmp_path / "voice.wav", sound, rate))
    session = avatar.session(image)
    in_pieces(session, sound, rate, seed=rate)
    chunks = list(session)
    assert torch.equal(latents_of(chunks), latents_of(expected))
    assert torch.equal(frames_of(chunks), frames_of(expected))
    for chunk, other in zip(chunks, expected, strict=True):
        assert np.array_equal(chunk.audio, other.audio)


def test_pushing_while_it_is_made_from_two_threads_of_two_sessions_changes_no_bit(
    avatar: Avatar, image: Path, recorded: tuple, tmp_path: Path
) -> None:
    """Two sessions on one set of weights, each pushed and taken in threads of its own."""
    sound, expected = recorded
    other = pcm(1.3, seed=9)
    theirs = offline(avatar, image, wav(tmp_path / "other.wav", other, 16_000), seed=5, prompt="Another.")
    sessions = [avatar.session(image, decode=False), avatar.session(image, "Another.", seed=5, decode=False)]
    found: list[list[VideoChunk]] = [[], []]

    def take(number: int) -> None:
        torch.set_num_threads(1)
        found[number].extend(sessions[number])

    threads = [threading.Thread(target=take, args=(number,)) for number in range(2)]
    threads += [
        threading.Thread(target=in_pieces, args=(session, voice, 16_000, seed))
        for session, voice, seed in zip(sessions, (sound, other), (1, 2), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert torch.equal(latents_of(found[0]), latents_of(expected))
    assert torch.equal(latents_of(found[1]), latents_of(theirs))
    assert not avatar.sessions


def test_a_short_voice_and_none_at_all_give_one_block(avatar: Avatar, image: Path) -> None:
    for sound in (pcm(0.05), np.zeros(0, np.int16)):
        session = avatar.session(image, decode=False)
        session.push(sound)
        session.finish()
        chunks = list(session)
        assert sum(len(chunk.frames) for chunk in chunks) == 12
