"""Text to speech: espeak-ng, piper's program (a stand-in), and a class of one's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import liveavatar
from liveavatar.live.avatar import Avatar
from liveavatar.live.voices import Espeak, Piper, Speaker, sentences
from liveavatar.media import espeak
from tests.live.scene import WORDS

speaks = pytest.mark.skipif(espeak.library() is None, reason="espeak-ng is not installed: no voice to synthesise")


def test_a_text_is_divided_into_sentences() -> None:
    assert sentences("Hello there.  How are you?\nFine! 3.5 is a number") == [
        "Hello there.",
        "How are you?",
        "Fine!",
        "3.5 is a number",
    ]
    for wrong in ("", " ... !", "\n"):
        with pytest.raises(ValueError, match="nothing to say"):
            sentences(wrong)
    with pytest.raises(ValueError, match="5001 characters"):
        sentences("a" * 5001)


@speaks
def test_a_sentence_is_said(avatar: Avatar, image: Path) -> None:
    found = []
    for _ in range(2):
        session = avatar.session(image, decode=False)
        session.say("Good morning. It is nice to see you.", voice="en-us")
        session.finish()
        found.append(list(session))
    heard = [np.concatenate([chunk.audio for chunk in chunks]) for chunks in found]
    assert np.array_equal(*heard)  # the same words sound the same
    assert 1.5 < len(heard[0]) / 48_000 < 5
    assert np.abs(heard[0]).max() > 0.1
    with avatar.session(image) as session, pytest.raises(ValueError, match="no voice"):
        session.say("Hello.", voice="xx-nobody")


@speaks
def test_an_interruption_ends_what_is_being_said(avatar: Avatar, image: Path) -> None:
    session = avatar.session(image, decode=False)

    class Rude:
        def speak(self, text: str, voice: str | None = None) -> Iterator[tuple[np.ndarray, int]]:
            yield np.ones(1600, np.float32), 16_000
            session.interrupt()
            yield np.ones(1600, np.float32), 16_000

    avatar._speaker, before = Rude(), avatar._speaker
    try:
        session.say("Whatever.")
    finally:
        avatar._speaker = before
    assert session.stats.queued_s == 0
    assert session.stats.pushed_s == pytest.approx(0.1)
    session.close()


def test_espeak_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"tts\.rate=1000"):
        Espeak(rate=1000)
    with pytest.raises(ValueError, match=r"tts\.pitch=-1"):
        Espeak(pitch=-1)


@pytest.fixture
def piper(tmp_path: Path) -> Path:
    """A voice file, and a program that says as many samples as it was given letters."""
    (tmp_path / "nora.onnx").write_bytes(b"voice")
    (tmp_path / "nora.onnx.json").write_text(json.dumps({"audio": {"sample_rate": 22050}}))
    program = tmp_path / "piper"
    program.write_text(
        "#!/usr/bin/env python3\nimport sys\nassert sys.argv[1] == '--model' and sys.argv[3] == '--output-raw'\n"
        "text = sys.stdin.read().strip()\nif 'fail' in text: sys.exit('no such phoneme')\n"
        "sys.stdout.buffer.write(b'\\x00\\x40' * len(text) + b'\\x00')\n"
    )
    program.chmod(0o755)
    return tmp_path


def test_piper_is_called_sentence_by_sentence(piper: Path) -> None:
    speaker = Piper(str(piper / "nora.onnx"), str(piper / "piper"))
    assert isinstance(speaker, Speaker)
    pieces = list(speaker.speak("Hello. Hi there."))
    assert [(len(pcm), rate) for pcm, rate in pieces] == [(6, 22050), (9, 22050)]
    assert pieces[0][0].dtype == np.int16
    with pytest.raises(ValueError, match="failed: no such phoneme"):
        list(speaker.speak("Please fail."))
    with pytest.raises(ValueError, match="no name of a piper voice"):
        list(speaker.speak("Hello.", voice="../secret"))
    with pytest.raises(ValueError, match=r"other\.onnx is missing"):
        list(speaker.speak("Hello.", voice="other"))
    with pytest.raises(ValueError, match="not installed"):
        list(Piper(str(piper / "nora.onnx"), str(piper / "nobody")).speak("Hello."))


class Hum:
    """A plug: hums as long as the text is."""

    def __init__(self, pitch: float = 220.0) -> None:
        self.pitch = pitch

    def speak(self, text: str, voice: str | None = None) -> Iterator[tuple[np.ndarray, int]]:
        yield np.sin(np.arange(len(text) * 800) * self.pitch / 8000).astype(np.float32), 8_000


def test_any_class_can_be_plugged_in(image: Path) -> None:
    plug = ["~tts", "+tts={_target_: tests.live.test_voices.Hum, pitch: 110}"]
    with liveavatar.load("micro", [*WORDS, *plug]) as avatar:
        session = avatar.session(image, decode=False)
        session.say("Ten letter")
        session.finish()
        assert sum(len(chunk.frames) for chunk in session) == 25
