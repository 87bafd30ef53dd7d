"""The weights that ship: half a minute of a stranger's voice, read from the pictures alone (`experiments/embedded`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.embedded.cases import Model, cases
from experiments.embedded.run import endurance
from liveavatar.media import espeak
from liveavatar.metrics import toon

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
