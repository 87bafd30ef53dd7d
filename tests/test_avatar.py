"""The weights that ship: half a minute of a stranger's voice, read from the pictures alone (`experiments/embedded`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.embedded.cases import Model, cases
from experiments.embedded.run import endurance
from experiments.embedded.voices import Ear
from liveavatar.media import espeak
from liveavatar.metrics import toon
from liveavatar.training.data import ToonSource
from liveavatar.training.sources import Told
from liveavatar.types import SPEECH_RATE

pytestmark = pytest.mark.skipif(espeak.library() is None, reason="espeak-ng is not installed")


def test_half_a_minute_keeps_talking_and_keeps_its_level(tmp_path: Path) -> None:
    first, last = endurance(["fabric.threads=1"], tmp_path, 30.0)
    for row in (first, last):
        assert float(row["lip_r"]) > 0.6
    for level in ("luma", "contrast"):
        assert float(last[level]) == pytest.approx(float(first[level]), rel=0.1)
    assert float(last["background_de"]) < float(first["background_de"]) + 5


def test_silence_keeps_the_mouth_shut(tmp_path: Path) -> None:
    case, model = cases(tmp_path, 1, 3.0, first=910)[0], Model(["fabric.threads=1"])
    speaking = float(np.quantile(toon.mouth(model(case.request())).opening, 0.95))
    quiet = toon.mouth(model(case.request(voice=np.zeros_like(case.clip.audio)))).opening
    model.close()
    assert speaking > 0.2
    assert float(np.mean(quiet)) < 0.1 * speaking


def test_a_dull_microphone_is_heard_nearly_as_well() -> None:
    source, model = ToonSource(30, 4.0, 6), Model(["fabric.threads=1"])
    ear = Ear.of(model.run.session.parts.speech.float(), [source.tell(number) for number in source.kept])
    slopes = {}
    for name, gains in (("plain", (0, 0, 0, 0, 0)), ("dull", (0, -11, -21, -12, -26))):
        heard = [ear.reads(_through(source.tell(number), gains)) for number in source.held_out]
        read, true = (np.concatenate([clip[side][:, 0] for clip in heard]) for side in (0, 1))
        slopes[name] = np.polyfit(true, read, 1)[0]
    model.close()
    assert slopes["plain"] > 0.75
    assert slopes["dull"] > 0.75 * slopes["plain"], slopes


def _through(told: Told, gains: tuple[int, ...]) -> Told:
    """What is told, in dB at 100, 600, 1200, 2000 and 3000 Hz, at the level that it had."""
    spectrum, hertz = np.fft.rfft(told.sound), np.fft.rfftfreq(len(told.sound), 1 / SPEECH_RATE)
    made = np.fft.irfft(spectrum * 10 ** (np.interp(hertz, (100, 600, 1200, 2000, 3000), gains) / 20), len(told.sound))
    made *= np.sqrt(np.mean(told.sound**2) / max(np.mean(made**2), 1e-12))
    return Told(made.astype(np.float32), told.curves)
