"""Sounds kept beforehand make the clips that espeak-ng would."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from liveavatar.training.data import ToonSource
from liveavatar.training.toon import make_clip
from liveavatar.training.toon.__main__ import main
from liveavatar.training.toon.kept import keep_sounds, kept_sound


def test_a_kept_sound_without_speech_is_the_clips_own(tmp_path: Path) -> None:
    silent = next(seed for seed in range(200) if _drawn_without_voice(seed))
    assert keep_sounds(tmp_path, [silent], 1.0) == 1
    assert keep_sounds(tmp_path, [silent], 1.0) == 0
    own, again = make_clip(silent, 1.0), make_clip(silent, 1.0, spoken=kept_sound(tmp_path, silent, 1.0, "train"))
    assert (own.sound, own.voice, own.prompt) == (again.sound, again.voice, again.prompt)
    np.testing.assert_allclose(own.audio, again.audio, atol=1 / 32767)
    np.testing.assert_array_equal(own.frames((32, 32)), again.frames((32, 32)))


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_a_source_speaks_from_its_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["--sounds", str(tmp_path), "--count", "2", "--seconds", "1.2"])
    own = [ToonSource(2, 1.2, 1).talk(number, (32, 32)) for number in (0, 1)]
    monkeypatch.setattr("liveavatar.training.toon.voices.speak", lambda lines: pytest.fail("espeak-ng was asked"))
    kept = [ToonSource(2, 1.2, 1, str(tmp_path)).talk(number, (32, 32)) for number in (0, 1)]
    for a, b in zip(own, kept, strict=True):
        np.testing.assert_allclose(a.sound, b.sound, atol=1 / 32767)
        assert a.curves is not None
        assert b.curves is not None
        np.testing.assert_allclose(a.curves, b.curves, atol=5e-3)  # formants are read from sound in 16 bits
        assert a.prompt == b.prompt


def test_a_sound_that_was_not_kept_is_told_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.sounds=.*no sound of clip 7.*--sounds"):
        ToonSource(8, 1.0, 1, str(tmp_path)).talk(7, (32, 32))
    (tmp_path / "train-00000007-1s.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="no sound of clip 7"):
        ToonSource(8, 1.0, 1, str(tmp_path)).talk(7, (32, 32))


def _drawn_without_voice(seed: int) -> bool:
    from liveavatar.training.toon.clips import _SHARES, SOUNDS, VOICES, _generators

    heard = _generators(seed)[2]
    heard.integers(len(VOICES["train"]))
    return str(heard.choice(SOUNDS, p=_SHARES)) != "speech"
