"""Text to speech (the `tts` group): whoever makes sound of a sentence can be plugged in."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from liveavatar.media.espeak import Line, speak
from liveavatar.types import SPEECH_RATE

MAX_TEXT = 5_000
"""Characters of a text that is spoken at once."""


@runtime_checkable
class Speaker(Protocol):
    """The plug: `tts._target_=my.module.Class` names any class that has this method.

    Gives the sound of a text in pieces, each with its rate, as soon as it has them; `voice` None is its own default.
    Raises ValueError where it cannot.
    """

    def speak(self, text: str, voice: str | None = None) -> Iterable[tuple[np.ndarray, int]]: ...


def sentences(text: str) -> list[str]:
    """The sentences of a text, so that the first can be heard before the last is made.

    Raises ValueError for a text without a word, and for one of more than 5000 characters.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"the text has {len(text)} characters, and at most {MAX_TEXT} are spoken at once: divide it")
    found = [piece.strip() for piece in re.split(r"(?<=[.!?…。！？])\s+|\n+", text)]
    found = [piece for piece in found if re.search(r"\w", piece)]
    if not found:
        raise ValueError(f"there is nothing to say in {text[:40]!r}: type a sentence")
    return found


class Espeak:
    """espeak-ng, offline; a process of its own for each sentence, so the same sentence always sounds the same.

    voice: a name of `espeak-ng --voices`. rate: words a minute. pitch: 0 to 99.
    """

    def __init__(self, voice: str = "en-us", rate: int = 165, pitch: int = 50) -> None:
        if not 80 <= rate <= 450:
            raise ValueError(f"tts.rate={rate} must be 80 to 450 words a minute")
        if not 0 <= pitch <= 99:
            raise ValueError(f"tts.pitch={pitch} must be 0 to 99")
        self.voice, self.rate, self.pitch = voice, rate, pitch

    def speak(self, text: str, voice: str | None = None) -> Iterator[tuple[np.ndarray, int]]:
        pieces = sentences(text)
        for piece in pieces:
            (spoken,) = speak([Line(piece, voice or self.voice, self.rate, self.pitch)])
            yield spoken.pcm, SPEECH_RATE


class Piper:
    """piper's program with a voice file (`.onnx`, its `.onnx.json` beside it).

    voice: the voice file; `say(…, voice=…)` takes another in the same folder, by its name without `.onnx`.
    program: how piper is called.
    """

    def __init__(self, voice: str, program: str = "piper") -> None:
        self.voice, self.program = Path(voice).expanduser(), program
        self._rate(self.voice)

    def speak(self, text: str, voice: str | None = None) -> Iterator[tuple[np.ndarray, int]]:
        pieces = sentences(text)
        if voice is not None and not re.fullmatch(r"[\w-]+", voice):
            raise ValueError(f"voice={voice!r} is no name of a piper voice, as in en_US-lessac-medium")
        file = self.voice if voice is None else self.voice.parent / f"{voice}.onnx"
        rate = self._rate(file)
        for piece in pieces:
            yield np.frombuffer(self._said(piece, file), "<i2"), rate

    def _said(self, text: str, file: Path) -> bytes:
        command = [self.program, "--model", str(file), "--output-raw"]
        try:
            done = subprocess.run(command, input=f"{text}\n".encode(), capture_output=True, timeout=60, check=False)
        except FileNotFoundError as error:
            raise ValueError(
                f"tts.program={self.program} is not installed: pip install piper-tts, or write tts=espeak"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"{self.program} did not speak {text[:40]!r} within 60 s") from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[-300:]
            raise ValueError(f"{self.program} failed: {said or done.returncode}")
        return done.stdout[: len(done.stdout) // 2 * 2]

    @staticmethod
    def _rate(file: Path) -> int:
        page = file.with_name(f"{file.name}.json")
        for needed in (file, page):
            if not needed.is_file():
                raise ValueError(f"tts.voice={file}: {needed.name} is missing; a piper voice is an .onnx and its .json")
        try:
            return int(json.loads(page.read_text(encoding="utf-8"))["audio"]["sample_rate"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"tts.voice={file}: {page.name} names no sample rate") from error
