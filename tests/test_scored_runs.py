"""What a run measures is what its file scores; files of every kind, and many at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from liveavatar.assemble import assemble
from liveavatar.config import compose
from liveavatar.evaluate import evaluate
from liveavatar.media.mp4 import Mp4Writer
from liveavatar.training.toon import Identity, idle, render
from tests.running import SMALL, picture, speech, write_wav

ROOT = Path(__file__).resolve().parent.parent
LOSS = {
    "quality/luma": 0.02, "quality/contrast": 0.05, "motion/steadiness": 0.01, "quality/sharpness": 0.2,
}  # fmt: skip
"""What H.264 at the writer's quality may change, as a share."""


def moving(count: int, seed: int = 4, side: int = 64) -> np.ndarray:
    return render(Identity.sample(seed), idle(seed, count), (side, side))


def written(path: Path, frames: np.ndarray, sound: np.ndarray | None = None, fps: int = 25) -> Path:
    writer = Mp4Writer(path, frames.shape[2], frames.shape[1], fps, 0 if sound is None else 16000)
    writer.write(frames, np.zeros(0, np.float32) if sound is None else sound.astype(np.float32))
    writer.close()
    return path


def scored(path: Path, *words: str) -> dict[str, Any]:
    return evaluate(compose("evaluate", [f"video={path}", "jobs=1", *words]))["videos"]


def test_metrics_of_a_run_are_those_of_its_file(tmp_path: Path) -> None:
    """Up to what the codec takes: 2 % of light, 1 of steadiness, 5 of contrast, 20 of sharpness, 1 level of drift.

    Not the chroma of noise, which is what a random model paints and 4:2:0 does not keep.
    """
    image, voice = picture(tmp_path / "me.png"), write_wav(tmp_path / "a.wav", speech(1.5))
    words = [f"request.image={image}", f"request.audio={voice}", f"output.dir={tmp_path / 'run'}"]
    run = assemble(compose("infer", [*SMALL, *words]))
    with run:
        frames = sum(len(chunk.frames) for chunk in run.chunks())
    told = json.loads((tmp_path / "run" / "metrics.json").read_text())
    about = json.loads((tmp_path / "run" / "about.json").read_text())
    (found,) = scored(tmp_path / "run" / "avatar.mp4").values()
    assert found["file/frames"] == frames
    assert {name for name in found if not name.startswith("file/")} == set(about) <= set(told)
    for name, share in LOSS.items():
        assert found[name] == pytest.approx(told[name], rel=share), name
    for name in about:
        if name in ("drift/luma", "drift/contrast"):
            assert found[name] == pytest.approx(told[name], abs=1), name
        assert isinstance(found[name], str) == isinstance(told[name], str), name


def test_two_at_a_time_score_as_one_after_another(tmp_path: Path) -> None:
    for number in range(3):
        written(tmp_path / f"{number}.mp4", moving(15, seed=number))
    (tmp_path / "3.mp4").write_bytes(b"nothing")
    one = evaluate(compose("evaluate", [f"video={tmp_path}", "jobs=1"]))
    two = evaluate(compose("evaluate", [f"video={tmp_path}", "jobs=2"]))
    assert one == two
    assert len({row["quality/luma"] for row in one["videos"].values() if not isinstance(row, str)}) == 3
    assert isinstance(one["videos"][str(tmp_path / "3.mp4")], str)


def _uneven(path: Path, frames: np.ndarray, times: list[int]) -> Path:
    """A file whose frames have times of their own, in hundredths of a second."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        for picture_, at in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture_, format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 100)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def test_uneven_times_are_put_on_an_even_grid(tmp_path: Path) -> None:
    frames = moving(20)
    even = _uneven(tmp_path / "even.mp4", frames, [4 * n for n in range(20)])
    held = _uneven(tmp_path / "held.mp4", frames, [4 * n if n < 10 else 4 * n + 20 for n in range(20)])
    (plain,), (found,) = scored(even).values(), scored(held).values()
    assert (plain["file/frames"], plain["file/uneven_frames"]) == (20, 0)
    assert found["file/uneven_frames"] >= 1
    assert found["motion/still_share"] > plain["motion/still_share"]  # what was held is seen as held
    assert found["quality/luma"] == pytest.approx(plain["quality/luma"], rel=0.02)


def test_a_broken_off_file_is_scored_up_to_there(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.mp4", moving(100), speech(4))
    data = whole.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: int(len(data) * 0.7)])
    rows = scored(tmp_path)
    assert rows[str(whole)]["file/frames"] == 100
    told = rows[str(cut)]
    assert 0 < told["file/frames"] < 100
    assert told["quality/luma"] == pytest.approx(rows[str(whole)]["quality/luma"], rel=0.05)


def test_one_frame_has_pictures_and_no_motion(tmp_path: Path) -> None:
    file = written(tmp_path / "one.mp4", moving(1))
    for metrics in ("toon", "weights", "faces"):
        (row,) = scored(file, f"metrics={metrics}", f"reference={file}").values()
        assert row["file/frames"] == 1
        assert isinstance(row["quality/luma"], float)
        assert row["motion/flow"].startswith("skipped: ")
        assert row["drift/luma"].startswith("skipped: ")
        assert row["reference/psnr"] == 100
        for name, value in row.items():
            assert isinstance(value, str) or np.isfinite(value), name


def test_the_command_takes_another_sound_and_a_reference(tmp_path: Path) -> None:
    video = written(tmp_path / "a.mp4", moving(24))  # without sound
    other = written(tmp_path / "b.mp4", moving(20, side=96), speech(0.8))
    sound = write_wav(tmp_path / "voice.wav", speech(1))
    command = [sys.executable, "-m", "liveavatar.evaluate", f"video={video}", f"reference={other}", f"audio={sound}"]
    done = subprocess.run(
        [*command, "metrics=toon", f"json={tmp_path / 'scores.json'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "reference/psnr" in done.stdout
    told = json.loads((tmp_path / "scores.json").read_text())
    (row,) = told["videos"].values()
    assert row["file/sound"] == "given"
    assert (row["reference/resized"], row["reference/frames"]) == (1, 20)
    assert 5 < row["reference/psnr"] < 60
    assert row["sync/lip_energy_r"] != "skipped: the video has no sound"
    assert told["about"]["reference/psnr"]["direction"] == "higher"
    done = subprocess.run([*command[:-1], f"audio={other}.gone"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "audio=" in done.stderr
    assert "Traceback" not in done.stderr


def test_reasons_stand_below_the_table_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from liveavatar import evaluate as command

    file = written(tmp_path / "a.mp4", moving(14))
    (tmp_path / "b.mp4").write_bytes(b"nothing")
    told = evaluate(compose("evaluate", [f"video={tmp_path}", "jobs=1", "metrics=weights", f"reference={file}"]))
    Console(width=100).print(command._table(told))
    table, lines = capsys.readouterr().out, command._reasons(told)
    assert "quality/luma" in table
    assert "reference/lpips" not in table  # nowhere measured
    assert any("sync/sync_c" in line and line.endswith("metrics.meters.sync.weights is not set: name there SyncNet, "
                                                       "syncnet_v2.model") for line in lines)  # fmt: skip
    assert sum("metrics.meters.fid.weights" in line for line in lines) == 1
    assert any(line.startswith("skipped b.mp4: ") for line in lines)
