"""Voices, mouths and prompts: what is heard is seen, what is asked is acted, splits have nothing in common."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from liveavatar.media import espeak
from liveavatar.media.espeak import Line, Phoneme, speak
from liveavatar.training.toon import corpus, make_clip, read_prompt
from liveavatar.training.toon.__main__ import main
from liveavatar.training.toon.clips import FACES
from liveavatar.training.toon.prompts import EMOTIONS, GESTURES, LIGHTS, SWING_HZ, Attributes, write_prompt
from liveavatar.training.toon.speech import CURVES, mouth
from liveavatar.training.toon.texts import LANGUAGES, sentence
from liveavatar.training.toon.voices import SPLITS, VOICES
from liveavatar.types import FPS

speaks = pytest.mark.skipif(espeak.library() is None, reason="espeak-ng is not installed: no voice to synthesise")
RATE = 16_000


def syllables(seconds: float = 3.0) -> np.ndarray:
    """A buzz with formants that comes and goes four times a second, then half a second of nothing: a made-up voice."""
    t = np.arange(round(seconds * RATE)) / RATE
    buzz = sum(np.sin(2 * np.pi * 120 * k * t) * np.exp(-(((120 * k - 700) / 500) ** 2)) for k in range(1, 40))
    pcm = 0.1 * buzz * np.clip(np.sin(2 * np.pi * 4 * t), 0, 1)
    pcm[-RATE // 2 :] = 0
    return pcm.astype(np.float32)


def test_any_sound_moves_the_mouth() -> None:
    found = mouth(syllables(), 75)
    assert set(found) == set(CURVES)
    assert found["opening"].max() > 0.4
    assert (found["opening"][-8:] == 0).all()
    for name, curve in found.items():
        assert curve.dtype == np.float32
        assert len(curve) == 75
        assert curve.min() >= (-1 if name == "width" else 0)
        assert curve.max() <= 1


@pytest.mark.parametrize("level", [0.0, 1e-4])
def test_silence_keeps_the_mouth_exactly_shut(level: float) -> None:
    hiss = np.random.default_rng(0).normal(0, 1, 2 * RATE).astype(np.float32) * level
    assert (mouth(hiss, 50)["opening"] == 0).all()


def test_nothing_looks_far_ahead() -> None:
    voice = syllables()
    cut = voice.copy()
    cut[RATE:] = 0.3
    whole, part = mouth(voice, 75), mouth(cut, 75)
    safe = int((1.0 - 0.32) * 25)
    for name in CURVES:
        np.testing.assert_allclose(whole[name][:safe], part[name][:safe], atol=1e-5)


def test_loudness_hardly_matters() -> None:
    loud, quiet = mouth(syllables(), 75)["opening"], mouth(syllables() * 0.3, 75)["opening"]
    np.testing.assert_allclose(loud, quiet, atol=0.02)


def test_lips_meet_on_p_b_and_m() -> None:
    names = ["a", "m", "a"]
    told = [Phoneme(0.3 * i, 0.3 * (i + 1), name) for i, name in enumerate(names)]
    hum = 0.2 * np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE).astype(np.float32)
    opening = mouth(hum, 25, told)["opening"]
    assert opening[11] < 0.1 * opening[:7].max()


@pytest.mark.parametrize("sound", ["silence", "noise", "music"])
def test_what_is_no_voice_leaves_the_mouth_shut(sound: str) -> None:
    clip = make_clip(3, 1.5, sound=sound)
    assert (clip.motion.opening == 0).all()
    assert clip.audio.dtype == np.float32
    assert len(clip.audio) == len(clip) * RATE // 25
    assert (np.abs(clip.audio).max() > 0.05) == (sound != "silence")


def test_a_recording_needs_no_espeak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak, "library", lambda: None)
    clip = make_clip(3, 3.0, audio=syllables())
    assert clip.motion.opening.max() > 0.4
    assert clip.sound == "recording"
    with pytest.raises(ValueError, match=r"espeak-ng is not installed.*apt-get install espeak-ng.*--audio file\.wav"):
        make_clip(3, 3.0, "en-us")


def test_bad_wishes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seconds=0\.01 is not one frame"):
        make_clip(0, 0.01)
    with pytest.raises(ValueError, match="split='exam'"):
        make_clip(0, 1, split="exam")
    with pytest.raises(ValueError, match="split='exam'"):
        next(corpus(0, 1, 1.0, "exam"))
    with pytest.raises(ValueError, match="language='xx'"):
        sentence(np.random.default_rng(0), "xx")
    with pytest.raises(ValueError, match="emotion='bored'"):
        Attributes("bored")


@speaks
def test_the_same_seed_says_the_same() -> None:
    speak([Line("Something said before.", "de")])
    a, b = (make_clip(5, 2.0, sound="speech") for _ in range(2))
    np.testing.assert_array_equal(a.audio, b.audio)
    np.testing.assert_array_equal(a.motion.opening, b.motion.opening)
    np.testing.assert_array_equal(a.frames((32, 32), slice(0, 3)), b.frames((32, 32), slice(0, 3)))
    assert (a.prompt, a.voice, a.identity) == (b.prompt, b.voice, b.identity)
    assert 0.3 < a.motion.opening.max() <= 1


@speaks
def test_phonemes_are_where_they_sound() -> None:
    (spoken,) = speak([Line("Papa map", "en-us")])
    names = [phoneme.name for phoneme in spoken.phonemes]
    assert names[0] == "p"
    assert "m" in names
    ends = [phoneme.end for phoneme in spoken.phonemes]
    assert ends == sorted(ends)
    assert ends[-1] == pytest.approx(len(spoken.pcm) / RATE, abs=0.05)
    with pytest.raises(ValueError, match="no voice 'qqq'"):
        speak([Line("x", "qqq")])


@speaks
def test_every_voice_there_is_speaks() -> None:
    voices = sorted({voice for split in SPLITS for voice in VOICES[split]})
    for spoken, voice in zip(speak([Line("mama", voice) for voice in voices]), voices, strict=True):
        assert len(spoken.pcm) > 0.15 * RATE, voice
        assert np.abs(spoken.pcm).max() > 0.01, voice


@speaks
def test_phonemes_and_sound_alone_agree() -> None:
    for voice in ("en-us", "de+f2"):
        (spoken,) = speak([Line("My friend bought many good apples for the big brown dog.", voice)])
        frames = len(spoken.pcm) * 25 // RATE
        known, heard = mouth(spoken.pcm, frames, spoken.phonemes), mouth(spoken.pcm, frames)
        assert np.corrcoef(known["opening"], heard["opening"])[0, 1] > 0.6


def test_splits_have_nothing_in_common() -> None:
    for kind in (0, 1):  # accent, timbre
        parts = [{(voice + "+").split("+")[kind] for voice in VOICES[split]} for split in SPLITS]
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]
    faces = [
        {make_clip(seed, 0.1, sound="silence", split=split).identity.seed for seed in range(40)} for split in SPLITS
    ]
    for number, seeds in enumerate(faces):
        assert all(number * 10_000_000 <= seed < number * 10_000_000 + FACES for seed in seeds)
        assert len(seeds) > 35


@speaks
def test_a_corpus_is_repeatable_and_varied() -> None:
    first, again = (list(corpus(2, 6, 0.6)) for _ in range(2))
    assert [clip.seed for clip in first] == [clip.seed for clip in again]
    assert len({clip.identity for clip in first}) == 6
    assert len({clip.prompt for clip in first}) > 3
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.audio, b.audio)
    assert first[0].seed != next(corpus(2, 1, 0.6, "test")).seed


def test_prompts_say_what_they_mean() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        asked = Attributes.sample(rng)
        text = write_prompt(asked, rng)
        assert read_prompt(text) == asked, text
        seen.add(text)
    assert len(seen) > 150
    assert read_prompt("A tax form.") == Attributes()
    assert read_prompt("An UNHAPPY person, nodding") == Attributes("sad", gesture="nodding")


def test_what_is_asked_is_acted() -> None:
    def acted(prompt: str):
        return make_clip(1, 2.0, sound="silence", prompt=prompt).motion

    rest = acted("a person")
    assert acted("a happy person").smile.mean() > 0.5 > -0.5 > acted("a sad person").smile.mean()
    assert acted("a surprised person").brow.mean() > rest.brow.mean() + 0.5
    assert acted("an angry person").frown.mean() > 0.5
    assert acted("a person, keeping still").x.std() < 0.3 * rest.x.std()
    assert acted("a person, nodding").nod.std() > 2 * rest.nod.std()
    assert acted("a person in blue light").light[0, 2] > 1 > acted("a person in warm light").light[0, 2]
    assert {"happy", "nodding", "warm"} <= {*EMOTIONS, *GESTURES, *LIGHTS}


def test_heads_swing_in_step_from_the_start_of_their_clips() -> None:
    """What starts anywhere cannot be told from a prompt and a voice; what begins with the clip can."""
    for words, name in (("nodding", "nod"), ("shaking the head", "turn")):
        told = []
        for seed in range(3):
            motions = [make_clip(seed, 3.0, sound="silence", prompt=f"a person{w}").motion for w in (f", {words}", "")]
            with_, without = (getattr(motion, name) for motion in motions)
            told.append(with_ - 0.5 * without)
        for swing in told:
            assert np.corrcoef(swing, told[0])[0, 1] > 0.99
            assert swing[: round(FPS / SWING_HZ / 2)].min() >= -1e-6  # the first half of a swing goes one way


def test_faces_live() -> None:
    counts, sways = [], []
    for seed in range(12):
        motion = make_clip(seed, 60.0, sound="silence", prompt="a person").motion
        counts.append(int(((motion.blink[1:] > 0.9) & (motion.blink[:-1] <= 0.9)).sum()))
        sways.append(motion.x.std())
        assert np.abs(np.diff(motion.x)).max() < 0.02  # slow
        assert motion.gaze_x.std() > 0.05
    assert min(counts) >= 10
    assert max(counts) <= 25
    assert min(sways) > 0.01
    still = make_clip(0, 4.0, sound="silence", prompt="a person", sway=0.0).motion
    assert still.x.std() == still.roll.std() == 0


def test_a_voice_moves_the_head() -> None:
    """Down from quiet to loud, in step with what is heard; the same noise lies underneath, and `sway` scales both."""
    pcm = syllables(12.0)
    pcm[4 * RATE : 8 * RATE] = 0
    spoken = make_clip(3, 12.0, audio=pcm, prompt="a person").motion
    silent = make_clip(3, 12.0, audio=np.zeros_like(pcm), prompt="a person").motion
    moved = spoken.y - silent.y
    assert moved[20:90].mean() > moved[115:185].mean() + 0.03
    assert np.corrcoef(moved[20:185], np.repeat([1.0, 0.0], [82, 83]))[0, 1] > 0.9
    assert np.abs(np.diff(spoken.x)).max() < 0.02
    still = make_clip(3, 12.0, audio=pcm, prompt="a person", sway=0.0).motion
    assert not still.x.any()
    assert not still.y.any()


def test_eyes_shut_as_a_pause_begins() -> None:
    """Pauses every three seconds: lids fall within three frames of each."""
    t = np.arange(24 * RATE) / RATE
    pcm = (0.2 * np.sin(2 * np.pi * 300 * t) * (t % 3 < 2.4)).astype(np.float32)
    blink = make_clip(5, 24.0, audio=pcm, prompt="a person").motion.blink
    starts = np.flatnonzero((blink[1:] > 0.9) & (blink[:-1] <= 0.9)) + 1
    for pause in 2.4 + 3 * np.arange(7):
        assert np.abs(starts / 25 - pause).min() < 0.17
    assert len(starts) <= 12
    other = make_clip(6, 12.0, audio=pcm[: 12 * RATE], prompt="a person").motion.blink
    assert np.array_equal(other, blink[: len(other)])  # nothing but the voice so far decides


@speaks
def test_speakers_blink_as_people_do() -> None:
    for seed in range(6):
        blink = make_clip(seed, 30.0, sound="speech").motion.blink
        assert 5 <= 2 * int(((blink[1:] > 0.9) & (blink[:-1] <= 0.9)).sum()) <= 30


def test_sentences_in_every_language() -> None:
    rng = np.random.default_rng(0)
    for language in LANGUAGES:
        assert len({sentence(rng, language) for _ in range(30)}) > 25


def test_the_command_line_draws(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet, face, talk, sound = (tmp_path / name for name in ("sheet.png", "face.png", "talk.mp4", "voice.wav"))
    main(["--preview", str(sheet), "--size", "32", "32"])
    main(["--portrait", str(face), "--size", "64", "64"])
    assert sheet.stat().st_size > 1000
    assert face.stat().st_size > 1000
    _save_wav(sound, syllables(1.2))
    main(["--clip", str(talk), "--audio", str(sound), "--size", "64", "64", "--seed", "3"])
    import av

    with av.open(str(talk)) as film:
        assert {stream.type for stream in film.streams} == {"video", "audio"}
        assert sum(1 for _ in film.decode(video=0)) == 30
    for wrong, words in (
        (["--seed", "1"], "say what to make"),
        (["--clip", str(talk), "--size", "50", "50"], "multiples of 16"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err


def _save_wav(path, pcm: np.ndarray) -> None:
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((pcm * 32767).astype(np.int16).tobytes())


@pytest.mark.skipif(sys.platform != "linux", reason="counts open file descriptors in /proc")
@speaks
def test_the_child_leaves_nothing_open() -> None:
    from pathlib import Path

    speak([Line("one")])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        speak([Line("two")])
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
