"""Meters: known answers, the right way under corruption, and unmoved by a good re-encoding."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from liveavatar.config import compose, make
from liveavatar.evaluate import score
from liveavatar.media.mp4 import Mp4Writer
from liveavatar.metrics import picture
from liveavatar.metrics.basic import DriftMeter
from liveavatar.metrics.flow import optical_flow
from liveavatar.metrics.reference import Beside, ReferenceMeter
from liveavatar.metrics.series import LaggedCorrelation, Windows, slope, start_end
from liveavatar.metrics.suite import Piece, Suite
from liveavatar.training.toon import Identity, Motion, idle, render

NODE = compose("evaluate", ["video=x", "metrics=toon"]).metrics
COUNT = 75


@functools.cache
def talk(face: int = 4) -> np.ndarray:
    """Three seconds of a toon whose mouth follows `voice`."""
    return render(Identity.sample(face), _motion(), (128, 128))


def _opening() -> np.ndarray:
    return np.abs(np.sin(np.arange(COUNT) * 0.37) * np.sin(np.arange(COUNT) * 0.113))


def _motion() -> Motion:
    return idle(4, COUNT).with_(opening=_opening() * 0.9)


def voice() -> np.ndarray:
    """Noise as loud as the mouth is open."""
    loud = np.repeat(10 ** (2.5 * _opening() - 3), 640)
    return (loud * np.random.default_rng(0).standard_normal(len(loud))).astype(np.float32)


def measured(frames: np.ndarray, sound: np.ndarray | None = None) -> dict:
    suite = make(NODE, "metrics")
    sound = voice() if sound is None else sound
    for start in range(0, len(frames), 12):
        heard = sound[start * 640 : (start + 12) * 640]
        suite.see(Piece(frames[start : start + 12], heard, 16000, start, 25))
    assert not suite.failures
    values = suite.values()
    assert set(values) == set(suite.abouts)
    return values


@functools.cache
def clean() -> dict:
    return measured(talk())


def test_pictures_have_known_numbers() -> None:
    checks = ((np.indices((16, 16)).sum(0) % 2) * 255).astype(np.uint8)[None, :, :, None].repeat(3, 3)
    luma = picture.grey(checks)
    assert picture.contrast(luma)[0] == pytest.approx(127.5, rel=1e-5)
    assert picture.sharpness(luma)[0] == pytest.approx((4 * 255) ** 2, rel=1e-5)
    assert picture.lab(np.uint8([255, 0, 0])) == pytest.approx([53.24, 80.09, 67.20], abs=0.05)
    assert picture.psnr(1.0) == pytest.approx(48.1308, abs=1e-3)
    assert picture.ssim(luma, luma)[0] == pytest.approx(1)


def test_flow_finds_a_pan() -> None:
    before = torch.from_numpy(talk()[:1].astype(np.float32)).mean(-1)
    for down, right in ((2, 5), (0, 8), (4, -6)):
        flow = optical_flow(before, torch.roll(before, (down, right), (1, 2))).flatten(2).median(2).values[0]
        assert flow.tolist() == pytest.approx([right, down], abs=0.4)


def test_lines_and_lags_are_found_in_bounded_memory() -> None:
    windows = Windows(frames=1, most=64)
    for start in range(0, 3000, 7):
        windows.add(np.arange(start, min(3000, start + 7)) * 2.0)
    minutes, means = windows.series(25)
    assert len(means) < 64
    assert slope(minutes, means) == pytest.approx((2 * 25 * 60, 0), abs=1e-6)
    assert start_end(np.array([1.0] * 50 + [4.0] * 50)) == 3
    rng = np.random.default_rng(1)
    sound = rng.standard_normal(300)
    for lag in (-6, 0, 4):
        found, lips = LaggedCorrelation(10), np.roll(sound, lag)
        for start in range(0, 300, 11):
            found.add(lips[start : start + 11], sound[start : start + 11])
        r, at = found.best()
        assert at == lag
        assert r > 0.95


def test_a_steady_fall_of_light_is_told_as_slope() -> None:
    meter, frames = DriftMeter(), np.repeat(np.arange(200, 100, -1, dtype=np.uint8), 3).reshape(100, 1, 1, 3)
    meter.see(Piece(np.broadcast_to(frames, (100, 32, 32, 3)).copy(), np.zeros(0), 0, 0, 25))
    found = meter.values()
    assert found["drift/luma_per_min"] == pytest.approx(-1500, rel=1e-3)
    assert found["drift/luma"] == pytest.approx(-85, abs=1)


def test_corruption_moves_each_the_right_way() -> None:
    frames, was = talk(), clean()
    soft = torch.nn.functional.avg_pool2d(torch.from_numpy(frames).permute(0, 3, 1, 2).float(), 5, 1, 2)
    assert measured(soft.permute(0, 2, 3, 1).to(torch.uint8).numpy())["quality/sharpness"] < 0.5 * was[
        "quality/sharpness"
    ]  # fmt: skip
    frozen = frames.copy()
    frozen[20:60] = frozen[20]
    now = measured(frozen)
    assert was["motion/still_share"] < 0.1 < 0.4 < now["motion/still_share"]
    assert now["motion/flow"] < 0.8 * was["motion/flow"]
    assert now["motion/steadiness"] > was["motion/steadiness"]
    tinted = frames.astype(np.float32)
    tinted[..., 0] *= np.linspace(1, 0.6, COUNT)[:, None, None]
    assert measured(tinted.astype(np.uint8))["drift/colour"] > was["drift/colour"] + 5
    swapped = np.concatenate([frames[:30], talk(11)[30:]])
    assert measured(swapped)["identity/toon_colours"] > was["identity/toon_colours"] + 4


def test_lips_follow_the_voice_and_not_another() -> None:
    was = clean()
    assert was["sync/lip_energy_r"] > 0.8
    late = measured(talk(), np.pad(voice(), (640 * 3, 0)))
    assert late["sync/lip_lag_ms"] == pytest.approx(was["sync/lip_lag_ms"] - 120)
    order = np.random.default_rng(3).permutation(COUNT)
    shuffled = voice().reshape(COUNT, 640)[order].reshape(-1)
    assert measured(talk(), shuffled)["sync/lip_energy_r"] < was["sync/lip_energy_r"] - 0.3


def test_dropped_frames_are_a_jump() -> None:
    panned = np.stack([np.roll(talk()[0], 2 * n, 1) for n in range(40)])
    dropped = np.concatenate([panned[:20], np.stack([np.roll(talk()[0], 60 + 2 * n, 1) for n in range(20)])])
    assert measured(panned)["motion/jump_share"] == 0
    assert measured(dropped)["motion/jump_share"] > 0


def test_likeness_to_a_reference() -> None:
    frames = talk()[:12]
    for noise, psnr in ((0, 100.0), (2, 42.11)):
        meter, shown = ReferenceMeter(), Piece(frames.clip(0, 250) + np.uint8(noise), np.zeros(0), 0, 0, 25)
        meter.see(Beside(iter(frames.clip(0, 250))).along(shown))
        assert meter.values()["reference/psnr"] == pytest.approx(psnr, abs=0.01)
    meter = ReferenceMeter()
    meter.see(Beside(iter(frames[:5, ::2, ::2])).along(Piece(frames, np.zeros(0), 0, 0, 25)))
    assert meter.values()["reference/resized"] == 1
    assert meter.values()["reference/frames"] == 5


def test_a_failing_meter_costs_nothing_else() -> None:
    class Broken:
        abouts = DriftMeter.abouts[:1]

        def see(self, piece: Piece) -> None:
            raise RuntimeError("no")

        def values(self) -> dict:
            return {}

    suite = Suite({"broken": Broken(), "drift": DriftMeter()})
    suite.see(Piece(talk()[:12], np.zeros(0), 0, 0, 25))
    assert suite.failures == {"broken": "the meter failed (no)"}
    assert isinstance(suite.values()["drift/a"], float)


def _written(path: Path, frames: np.ndarray, sound: bool = True) -> Path:
    writer = Mp4Writer(path, frames.shape[2], frames.shape[1], 25, 16000 if sound else 0)
    writer.write(frames, voice() if sound else np.zeros(0, np.float32))
    writer.close()
    return path


def test_a_file_scores_as_its_frames_did(tmp_path: Path) -> None:
    """The codec's loss, stated: H.264 at crf 18."""
    was = clean()
    found, about = score(NODE, _written(tmp_path / "a.mp4", talk()))
    for name in ("quality/contrast", "quality/luma", "sync/lip_energy_r", "motion/steadiness"):
        assert found[name] == pytest.approx(was[name], rel=0.03), name
    assert found["quality/sharpness"] == pytest.approx(was["quality/sharpness"], rel=0.25)
    assert found["drift/colour"] == pytest.approx(was["drift/colour"], abs=1)
    assert set(about) <= set(found)
    assert found["file/frames"] == COUNT


def test_folders_are_scored_around_what_is_broken(tmp_path: Path) -> None:
    from liveavatar.evaluate import evaluate

    _written(tmp_path / "mute.mp4", talk()[:13], sound=False)
    _written(tmp_path / "one.mp4", talk()[:1], sound=False)
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 100)
    cfg = compose("evaluate", [f"video={tmp_path}", "metrics=toon", "jobs=1"])
    rows = {Path(name).name: row for name, row in evaluate(cfg)["videos"].items()}
    assert rows["bad.mp4"].startswith("skipped: ")
    assert "no sound" in rows["mute.mp4"]["sync/lip_energy_r"]
    assert rows["one.mp4"]["motion/flow"].startswith("skipped: ")
    with pytest.raises(ValueError, match="not a video"):
        evaluate(compose("evaluate", [f"video={tmp_path / 'bad.mp4'}"]))


def test_motion_of_a_pan_is_known() -> None:
    for step in (0, 1, 3):
        values = measured(np.stack([np.roll(talk()[0], step * number, 1) for number in range(31)]), voice()[: 31 * 640])
        assert values["motion/flow"] == pytest.approx(100 * step / 128, abs=0.15)
        assert values["motion/flow_top"] >= values["motion/flow"]
        if step != 1:  # pairs 3 frames apart: 9 pixels of 128 are above 3, and none below; 3 are on the edge
            assert values["motion/dynamic_share"] == (step == 3)
        assert values["motion/still_share"] == (step == 0)
    flashing = np.full((20, 32, 32, 3), 100, np.uint8)
    flashing[::2] += 51
    assert measured(flashing, np.zeros(20 * 640))["motion/steadiness"] == pytest.approx(1 - 51 / 255)


def test_likeness_falls_with_blur_and_colour_and_not_with_grain() -> None:
    frames, found = talk()[:6], {}
    soft = torch.nn.functional.avg_pool2d(torch.from_numpy(frames).permute(0, 3, 1, 2).float(), 5, 1, 2)
    tinted = (frames * np.array([1, 0.8, 1])).astype(np.uint8)
    grained = (frames + np.random.default_rng(0).normal(0, 1, frames.shape)).round().clip(0, 255).astype(np.uint8)
    others = {
        "same": frames,
        "soft": soft.permute(0, 2, 3, 1).to(torch.uint8).numpy(),
        "tint": tinted,
        "grain": grained,
    }
    for name, other in others.items():
        meter = ReferenceMeter()
        meter.see(Beside(iter(other)).along(Piece(frames, np.zeros(0), 0, 0, 25)))
        found[name] = meter.values()
    assert found["same"] == pytest.approx({"reference/psnr": 100, "reference/ssim": 1, "reference/delta_e": 0,
                                           "reference/frames": 6, "reference/resized": 0})  # fmt: skip
    for name in ("soft", "tint"):
        assert found[name]["reference/psnr"] < 35 < 45 < found["grain"]["reference/psnr"], name
    assert found["soft"]["reference/ssim"] < 0.9 < 0.97 < found["grain"]["reference/ssim"]
    assert found["tint"]["reference/delta_e"] > 8
    grey = [np.full((1, 16, 16, 3), level, np.uint8) for level in (0, 255)]
    meter = ReferenceMeter()
    meter.see(Beside(iter(grey[1])).along(Piece(grey[0], np.zeros(0), 0, 0, 25)))
    assert meter.values()["reference/delta_e"] == pytest.approx(100, abs=0.01)  # black and white
    assert meter.values()["reference/psnr"] == 0
