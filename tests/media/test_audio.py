"""Voices: every kind of file that people have, exact samples, and what is said about the rest."""

from __future__ import annotations

import logging
import struct
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from liveavatar.media.audio import Voice, load_voice, mix

ASSETS = Path(__file__).resolve().parents[2] / "liveavatar" / "assets"
RATE = 24_000


def _tone(seconds: float, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def _wav(path: Path, data: bytes, kind: int, bits: int, channels: int = 1, rate: int = RATE) -> Path:
    """A WAV file by hand: kind 1 is integers, 3 floats."""
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * block, block, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


def _encode(path: Path, codec: str, sample_format: str, samples: np.ndarray, rate: int = RATE) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono", format=sample_format)
        resampler = av.AudioResampler(format=sample_format, layout="mono", rate=rate)
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for piece in resampler.resample(frame):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


def test_a_real_voice() -> None:
    voice = load_voice(ASSETS / "fashion_blogger.flac")
    assert (voice.rate, voice.seconds, voice.pcm.dtype) == (24_000, 4.0, np.float32)
    assert 0.3 < abs(voice.pcm).max() <= 1
    assert abs(voice.pcm[-1200:]).max() < 0.02  # it ends in a pause


def test_integers_become_fractions_of_their_range_exactly(tmp_path: Path) -> None:
    for bits, values in (
        (8, [0, 128, 255]),
        (16, [-32768, 1, 32767]),
        (24, [-(2**23), 1, 2**23 - 1]),
        (32, [-(2**31), 1, 2**30]),
    ):
        data = b"".join((v & (2**bits - 1)).to_bytes(bits // 8, "little") for v in values)
        wanted = [(v - 128) / 128 if bits == 8 else v / 2 ** (bits - 1) for v in values]
        voice = load_voice(_wav(tmp_path / f"{bits}.wav", data, 1, bits))
        assert voice.pcm.tolist() == np.float32(wanted).tolist()


def test_floats_are_kept_as_they_are_beyond_one_too(tmp_path: Path) -> None:
    samples = np.float32([0.1, -1.5, 1e-8, 0.25])
    assert np.array_equal(load_voice(_wav(tmp_path / "a.wav", samples.tobytes(), 3, 32)).pcm, samples)
    double = samples.astype(np.float64)
    assert np.array_equal(load_voice(_wav(tmp_path / "b.wav", double.tobytes(), 3, 64)).pcm, samples)


@pytest.mark.parametrize("channels", [2, 3, 6])
def test_channels_are_averaged(tmp_path: Path, channels: int) -> None:
    frames = np.arange(50 * channels, dtype=np.int16).reshape(50, channels) * 17
    voice = load_voice(_wav(tmp_path / "many.wav", frames.tobytes(), 1, 16, channels))
    assert np.array_equal(voice.pcm, (frames.mean(axis=1) / 32768).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "codec", "sample_format", "delay"),
    [
        ("a.mp3", "libmp3lame", "fltp", 0),
        ("a.m4a", "aac", "fltp", 0),
        ("a.flac", "flac", "s16", 0),
        ("a.ogg", "libopus", "flt", 0),
        ("a.mkv", "aac", "fltp", 0),
    ],
)
def test_compressed_voices(tmp_path: Path, name: str, codec: str, sample_format: str, delay: int) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    rate = 48_000 if codec == "libopus" else RATE
    tone = _tone(1.0, rate)
    voice = load_voice(_encode(tmp_path / name, codec, sample_format, tone, rate))
    assert voice.rate == rate
    assert voice.seconds == pytest.approx(1.0, abs=0.1)
    middle = slice(rate // 4, rate // 2)
    assert abs(voice.pcm[middle] - tone[middle]).mean() < 0.05  # in its place: half a period off would be 0.6


def test_the_sound_of_a_video(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25, width=32, height=32, pix_fmt="yuv420p")
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        for _ in range(25):
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(video.encode(picture))
        frame = av.AudioFrame.from_ndarray(_tone(1.0)[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        container.mux(audio.encode(frame))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    assert load_voice(path).seconds == pytest.approx(1.0, abs=0.1)


def test_silence_is_a_voice(tmp_path: Path) -> None:
    voice = load_voice(_wav(tmp_path / "quiet.wav", bytes(RATE * 2), 1, 16))
    assert voice.seconds == 1.0
    assert not voice.pcm.any()
    assert not voice.at(16_000).any()


def test_resampling_keeps_length_pitch_and_the_array_when_there_is_nothing_to_do() -> None:
    voice = Voice(_tone(0.5), RATE)
    assert voice.at(RATE) is voice.pcm
    slower = voice.at(16_000)
    assert slower.dtype == np.float32
    assert len(slower) == 8_000
    assert abs(slower - _tone(0.5, 16_000))[200:-200].max() < 1e-4
    assert len(Voice(voice.pcm[:1001], RATE).at(16_000)) == 668  # a begun sample counts
    assert len(Voice(voice.pcm[:0], RATE).at(16_000)) == 0


def test_cut_and_padded() -> None:
    voice = Voice(_tone(1.0), RATE)
    assert voice.cut(0.25).seconds == 0.25
    assert voice.cut(None) is voice
    assert voice.cut(9.0).seconds == 1.0
    longer = voice.padded(1.5)
    assert longer.seconds == 1.5
    assert np.array_equal(longer.pcm[:RATE], voice.pcm)
    assert not longer.pcm[RATE:].any()
    assert voice.padded(0.5) is voice


def test_a_file_that_breaks_off_is_used_as_far_as_it_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = _encode(tmp_path / "whole.flac", "flac", "s16", _tone(2.0))
    data = whole.read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
    voice = load_voice(tmp_path / "cut.flac")
    assert 0.3 < voice.seconds < 1.8
    known = load_voice(whole).pcm
    sound = voice.pcm[: RATE // 4]
    assert np.array_equal(sound, known[: len(sound)])
    noise = bytearray(data)
    middle = len(noise) // 2
    noise[middle : middle + 300] = b"\x00" * 300
    (tmp_path / "hurt.flac").write_bytes(noise)
    with caplog.at_level(logging.WARNING):
        assert load_voice(tmp_path / "hurt.flac").seconds > 0.5


def _silent_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, width=32, height=32, pix_fmt="yuv420p")
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _no_samples(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("missing.wav", lambda path: None, "does not exist"),
        ("folder", lambda path: path.mkdir(), "is a folder"),
        ("empty.wav", lambda path: path.touch(), "is an empty file"),
        ("notes.txt", lambda path: path.write_text("hello there\n" * 99), "is not a sound file"),
        ("notes.wav", lambda path: path.write_text("hello there\n" * 99), "is not a sound file"),
        ("face.png", lambda path: Image.new("RGB", (64, 64)).save(path), "is not a sound file"),
        ("film.mp4", _silent_video, "is a video without sound"),
        ("short.wav", _no_samples, "no sound that can be decoded"),
        ("nan.wav", lambda path: _wav(path, np.float32([0, np.nan, 0]).tobytes(), 3, 32), "NaN or infinite"),
        ("inf.wav", lambda path: _wav(path, np.float32([0, np.inf, 0]).tobytes(), 3, 32), "NaN or infinite"),
    ],
)
def test_what_is_said_about_bad_files(tmp_path: Path, name: str, make, said: str) -> None:
    make(tmp_path / name)
    with pytest.raises(ValueError, match=r"^request\.audio\[1\]=") as caught:
        load_voice(tmp_path / name, key="request.audio[1]")
    assert said in str(caught.value)
    assert name in str(caught.value)


def test_mix() -> None:
    slow, fast = Voice(np.full(100, 0.75, np.float32), 100), Voice(np.full(400, 0.5, np.float32), 200)
    both = mix([slow, fast])
    assert (both.rate, both.seconds, both.pcm.dtype) == (200, 1.0, np.float32)
    assert both.pcm.max() == 1.0  # limited
    longest = mix([slow, fast], length="longest")
    assert longest.seconds == 2.0
    assert (longest.pcm[-100:] == 0.5).all()
    with pytest.raises(ValueError, match="at least one"):
        mix([])
