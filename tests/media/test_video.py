"""Video files: pose videos in; and out, files that play up to the last chunk whatever happens."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from liveavatar.media.mp4 import Mp4Sink, Mp4Writer
from liveavatar.media.video import fit_frame, probe, read_video
from liveavatar.types import StreamInfo, VideoChunk

FPS, RATE, FRAME = 25, 48_000, 0.04
HEIGHT, WIDTH = 64, 48
STREAM = (9, 12, 12, 12, 12)
"""Frames of the chunks of a stream: the first is shorter."""


def _pictures(start: int, count: int) -> np.ndarray:
    """Frame n is a flat grey of 20 + 3 n levels."""
    levels = (20 + 3 * np.arange(start, start + count)).clip(0, 255).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, HEIGHT, WIDTH, 3))


def _tone(start: int, count: int, rate: int = RATE) -> np.ndarray:
    """Samples under `count` frames from frame `start`: a rising tone, so that every place is different."""
    seconds = np.arange(start * rate // FPS, (start + count) * rate // FPS) / rate
    return (0.5 * np.sin(2 * np.pi * (200 + 100 * seconds) * seconds)).astype(np.float32)


def _write(writer: Mp4Writer, chunks: tuple[int, ...] = STREAM, rate: int = RATE) -> int:
    start = 0
    for count in chunks:
        writer.write(_pictures(start, count), _tone(start, count, rate))
        start += count
    return start


def _decoded(path: Path) -> tuple[list[tuple[float, np.ndarray, bool]], np.ndarray, float]:
    """Frames as (seconds, RGB, key), all sound, and when the sound begins."""
    frames, sound, begins = [], [], []
    with av.open(str(path)) as container:
        for frame in container.decode(*container.streams):
            if isinstance(frame, av.VideoFrame):
                frames.append((frame.time, frame.to_ndarray(format="rgb24"), frame.key_frame))
            else:
                begins.append(frame.time)
                sound.append(frame.to_ndarray()[0])
    return frames, np.concatenate(sound) if sound else np.zeros(0), min(begins, default=0.0)


@pytest.mark.parametrize("rate", [48_000, 24_000, 44_100])
def test_pictures_and_sound_come_back_where_they_were(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "out.mp4"
    writer = Mp4Writer(path, WIDTH, HEIGHT, FPS, rate)
    total = _write(writer, rate=rate)
    writer.close()
    writer.close()  # a second time does nothing
    measured = probe(path)
    assert (measured["frames"], measured["fps"]) == (total, FPS)
    assert (measured["width"], measured["height"], measured["audio_rate"]) == (WIDTH, HEIGHT, rate)
    assert measured["video_seconds"] == pytest.approx(total / FPS)
    assert 0 <= measured["audio_seconds"] - total / FPS < FRAME
    frames, sound, begins = _decoded(path)
    assert [round(seconds * FPS) for seconds, _, _ in frames] == list(range(total))
    for (_, pixels, _), wanted in zip(frames, _pictures(0, total), strict=True):
        assert abs(pixels.astype(int) - wanted).max() <= 4
    assert begins == 0
    wanted = _tone(0, total, rate)
    errors = {
        shift: abs(sound[2048 + shift : len(wanted) - 2048 + shift] - wanted[2048:-2048]).mean()
        for shift in (-1024, -480, 0, 480, 1024)
    }
    assert errors[0] < 0.03, errors
    assert min(error for shift, error in errors.items() if shift) > 5 * errors[0]


def test_colours_survive(tmp_path: Path) -> None:
    colours = np.array([(200, 40, 90), (30, 160, 60), (20, 60, 220), (255, 255, 255), (0, 0, 0)], np.uint8)
    frames = np.repeat(colours, 3, axis=0)[:, None, None].repeat(HEIGHT, axis=1).repeat(WIDTH, axis=2)
    writer = Mp4Writer(tmp_path / "out.mp4", WIDTH, HEIGHT, FPS, 0)
    writer.write(frames, np.zeros(0, np.float32))
    writer.close()
    decoded, _, _ = _decoded(tmp_path / "out.mp4")
    for (_, pixels, _), wanted in zip(decoded, frames, strict=True):
        assert abs(pixels.astype(int) - wanted).max() <= 4


def test_the_file_says_what_colours_and_what_length_it_has(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    writer = Mp4Writer(path, WIDTH, HEIGHT, FPS, RATE)
    total = _write(writer)
    with av.open(str(path)) as container:  # while it is being written
        assert container.duration / av.time_base == pytest.approx(total / FPS, abs=2 * FRAME)
        context = container.streams.video[0].codec_context
        assert (int(context.color_primaries), int(context.color_trc), int(context.colorspace)) == (1, 1, 1)
        assert int(context.color_range) == 1
    assert int.from_bytes(path.read_bytes().partition(b"mehd")[2][4:8], "big") == total * 40
    writer.close()


def test_each_chunk_is_a_fragment_that_plays_on_its_own(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    writer = Mp4Writer(path, WIDTH, HEIGHT, FPS, 0)
    _write(writer, (9, 12, 30))
    writer.close()
    assert path.read_bytes().count(b"moof") == 3
    keys = [number for number, (_, _, key) in enumerate(_decoded(path)[0]) if key]
    assert {0, 9, 21} <= set(keys)
    assert max(np.diff([*keys, 51])) <= 12


def test_the_file_plays_after_every_single_chunk(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    writer = Mp4Writer(path, WIDTH, HEIGHT, FPS, RATE)
    done = 0
    for count in STREAM:
        writer.write(_pictures(done, count), _tone(done, count))
        done += count
        measured = probe(path)
        assert measured["frames"] == done
        assert measured["audio_seconds"] == pytest.approx(done / FPS, abs=0.07)  # AAC holds back three frames
    writer.close()


def test_a_killed_writer_leaves_a_file_that_plays(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    code = f"""
        import os, signal
        import numpy as np
        from liveavatar.media.mp4 import Mp4Writer
        writer = Mp4Writer({str(path)!r}, 48, 64, 25, 48000)
        for count in (9, 12, 12):
            writer.write(np.full((count, 64, 48, 3), 90, np.uint8), np.zeros(count * 1920, np.float32))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    measured = probe(path)
    assert measured["frames"] == 33
    assert measured["audio_seconds"] == pytest.approx(33 / 25, abs=0.07)


class _Killed(BaseException):
    """Stands for the end of the process: nobody handles it."""


class _Torn(io.FileIO):
    """A file whose process is killed in the middle of a write, when it holds so many bytes."""

    end = 1 << 30

    def write(self, data) -> int:
        written = super().write(bytes(data)[: max(0, self.end - self.tell())])
        if written < len(data):
            raise _Killed
        return written

    def truncate(self, size: int | None = None) -> int:
        raise OSError("a killed process tidies nothing up")


@pytest.mark.parametrize("torn_after", [0, 3, 8, 40, 300, 1000])
def test_a_torn_fragment_costs_only_itself(tmp_path: Path, torn_after: int) -> None:
    path = tmp_path / "out.mp4"
    file = _Torn(path, "wb")
    writer = Mp4Writer(path, WIDTH, HEIGHT, FPS, RATE, file=file)
    _write(writer, (9, 12))
    whole = path.stat().st_size
    file.end = whole + torn_after
    with pytest.raises(_Killed):
        writer.write(_pictures(21, 12), _tone(21, 12))
    assert path.stat().st_size == whole + torn_after
    measured = probe(path)
    assert measured["frames"] == 21
    assert measured["audio_seconds"] == pytest.approx(0.84, abs=0.07)


class _SmallDisk(io.FileIO):
    """A file on a disk with room for so many bytes: takes what fits, then refuses."""

    room = 0

    def write(self, data) -> int:
        left = self.room - self.tell()
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(bytes(data)[:left])


def test_a_full_disk_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    disk = _SmallDisk(path, "wb")
    disk.room = 1 << 30
    writer = Mp4Writer(path, WIDTH, HEIGHT, FPS, RATE, file=disk)
    _write(writer, (9, 12))
    whole = path.stat().st_size
    disk.room = whole + 100
    with pytest.raises(OSError, match=r"^\[Errno 28\] output\.dir: .*0\.8 s written so far") as caught:
        writer.write(_pictures(21, 12), _tone(21, 12))
    assert caught.value.errno == errno.ENOSPC
    assert path.stat().st_size == whole
    disk.room = 1 << 30
    with pytest.raises(OSError, match=r"output\.dir"):  # a hole in the stream would be worse than its end
        writer.write(_pictures(33, 12), _tone(33, 12))
    writer.close()
    measured = probe(path)
    assert measured["frames"] == 21
    assert measured["audio_seconds"] == pytest.approx(0.84, abs=0.07)


def test_a_disk_full_from_the_start(tmp_path: Path) -> None:
    disk = _SmallDisk(tmp_path / "out.mp4", "wb")
    writer = Mp4Writer(tmp_path / "out.mp4", WIDTH, HEIGHT, FPS, RATE, file=disk)
    with pytest.raises(OSError, match=r"Nothing has been written"):
        _write(writer)
    writer.close()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"output\.dir: .*no/out\.mp4 cannot be written"):
        Mp4Writer(tmp_path / "no" / "out.mp4", WIDTH, HEIGHT, FPS, RATE)
    with pytest.raises(IsADirectoryError, match=r"output\.dir"):
        Mp4Writer(tmp_path, WIDTH, HEIGHT, FPS, RATE)


def test_sound_is_fitted_to_the_pictures(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    writer = Mp4Writer(path, WIDTH, HEIGHT, FPS, RATE)
    writer.write(_pictures(0, 12), np.zeros(0, np.float32))  # the voice has not begun
    writer.write(_pictures(12, 12), np.full(5 * RATE, 0.5, np.float32))  # and here has far too much to say
    writer.close()
    assert probe(path)["audio_seconds"] == pytest.approx(24 / FPS, abs=FRAME)
    _, sound, _ = _decoded(path)
    assert abs(sound[: RATE // FPS * 11]).max() < 0.05
    assert abs(sound[RATE // FPS * 14 : RATE // FPS * 22]).mean() > 0.2


def test_a_first_chunk_too_short_for_any_sound_waits_for_the_next(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    writer = Mp4Writer(path, WIDTH, HEIGHT, FPS, 16_000)
    _write(writer, (1, 1, 12), rate=16_000)
    writer.close()
    assert probe(path)["frames"] == 14
    frames, _, begins = _decoded(path)
    assert [round(seconds * FPS) for seconds, _, _ in frames] == list(range(14))
    assert begins == 0


def test_odd_sizes_and_rates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be even"):
        Mp4Writer(tmp_path / "out.mp4", 47, HEIGHT, FPS, RATE)
    with pytest.raises(ValueError, match="12345 Hz"):
        Mp4Writer(tmp_path / "out.mp4", WIDTH, HEIGHT, FPS, 12_345)


def test_without_x264_it_still_writes_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(av, "codecs_available", {"mpeg4", "aac"})
    path = tmp_path / "out.mp4"
    writer = Mp4Writer(path, WIDTH, HEIGHT, FPS, RATE)
    _write(writer)
    writer.close()
    assert "libx264" in caplog.text
    assert probe(path)["frames"] == sum(STREAM)
    for (_, pixels, _), wanted in zip(_decoded(path)[0], _pictures(0, sum(STREAM)), strict=True):
        assert abs(pixels.astype(int) - wanted).mean() <= 4


def test_the_sink(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    sink = Mp4Sink(path)
    sink.close()  # before it was opened: nothing to do
    sink.open(StreamInfo(width=WIDTH, height=HEIGHT, fps=FPS, audio_rate=RATE, total_frames=21))
    start = 0
    for index, count in enumerate((9, 12)):
        frames = torch.full((count, 3, HEIGHT, WIDTH), 0.5)
        sink.write(VideoChunk(index, start, frames, np.zeros(count * 1920, np.float32), RATE))
        start += count
    sink.close()
    frames, _, _ = _decoded(path)
    assert len(frames) == 21
    assert abs(frames[0][1].astype(int) - 191).max() <= 3


def _film(path: Path, rate: int, count: int) -> Path:
    """Frame n has 10 n levels of grey."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate, width=64, height=32, pix_fmt="yuv420p")
        stream.codec_context.bit_rate = 2_000_000
        for number in range(count):
            pixels = np.full((32, 64, 3), 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("rate", "interval"), [(10, 1), (25, 1), (30, 1), (50, 2), (60, 2), (100, 4)])
def test_a_pose_video_is_sampled_at_whole_intervals(tmp_path: Path, rate: int, interval: int) -> None:
    frames = list(read_video(_film(tmp_path / "pose.mp4", rate, 20)))
    assert [round(frame.mean() / 10) for frame in frames] == list(range(0, 20, interval))
    assert frames[0].shape == (32, 64, 3)
    assert frames[0].dtype == np.uint8
    assert len(list(read_video(tmp_path / "pose.mp4", limit=3))) == 3


def test_fit_frame_is_torchs_resize_and_a_centre_crop() -> None:
    frames = torch.randint(0, 256, (2, 50, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    fitted = torch.stack([fit_frame(frame, 32, 32) for frame in frames], dim=1)
    assert fitted.shape == (3, 2, 32, 32)
    planes = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
    resized = torch.nn.functional.interpolate(planes, size=(32, 44), mode="bilinear", antialias=True)
    assert torch.allclose(fitted, resized[..., 6:38].transpose(0, 1), atol=1e-5)
    padded = torch.stack([fit_frame(frame, 32, 64) for frame in frames.numpy()], dim=1)
    assert (padded[..., :10] == -1).all()
    assert (padded[..., 54:] == -1).all()
    assert torch.allclose(padded[..., 10:54], resized.transpose(0, 1), atol=1e-5)


def test_a_pose_video_that_breaks_off_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mkv"
    _film(whole, 25, 20)
    (tmp_path / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert 0 < len(list(read_video(tmp_path / "cut.mkv"))) < 20


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("missing.mp4", lambda path: None, "does not exist"),
        ("folder", lambda path: path.mkdir(), "is a folder"),
        ("text.mp4", lambda path: path.write_text("no video\n" * 99), "is not a video"),
        ("face.png", lambda path: Image.new("RGB", (64, 64)).save(path), "no moving pictures"),
    ],
)
def test_what_is_said_about_bad_pose_videos(tmp_path: Path, name: str, make, said: str) -> None:
    make(tmp_path / name)
    with pytest.raises(ValueError, match=r"^request\.pose=") as caught:
        read_video(tmp_path / name)
    assert said in str(caught.value)


def test_nothing_to_probe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be opened"):
        probe(tmp_path / "missing.mp4")
