"""What cannot work is refused before anything is made: one message that names the key, and nothing left behind."""

from __future__ import annotations

import errno
import logging
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from liveavatar.assemble import assemble, make_request
from liveavatar.config import compose
from liveavatar.infer import infer
from liveavatar.intake import check_request
from liveavatar.media.image import fit_size, load_image
from liveavatar.media.mp4 import Mp4Writer
from liveavatar.media.video import probe
from liveavatar.sampling.rollout import Rollout
from tests.running import SMALL, picture, speech, write_wav


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of inputs, good and bad, whose name is none too easy."""
    folder = tmp_path / "in, put=1 (a)"
    folder.mkdir()
    picture(folder / "me.png")
    sound = speech(0.3)
    write_wav(folder / "hello.wav", sound)
    write_wav(folder / "other.wav", speech(0.3, seed=1))
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.txt").write_text("no picture, no sound")
    (folder / "cut.png").write_bytes((folder / "me.png").read_bytes()[:60])
    writer = Mp4Writer(folder / "mute.mp4", 64, 64, 25, 0)
    writer.write(np.zeros((3, 64, 64, 3), np.uint8), np.zeros(0, np.float32))
    writer.close()
    picture(folder / "mask.png")
    return folder


def _overrides(folder: Path, *more: str) -> list[str]:
    given = [f"request.image={folder}/me.png", f"request.audio={folder}/hello.wav", f"output.dir={folder.parent}/out"]
    return [*SMALL, *given, *(text.replace("@", f"{folder}/") for text in more)]


MISTAKES: list[tuple[str, list[str]]] = [
    (r"request\.image=.*nobody\.png does not exist", ["request.image=@nobody.png"]),
    (r"request\.image=.* is a folder", ["request.image=@"]),
    (r"request\.image=.*text\.txt is not a picture", ["request.image=@text.txt"]),
    (r"request\.image=.*cut\.png is a damaged picture", ["request.image=@cut.png"]),
    (r"request\.image=.*mute\.mp4 is a video", ["request.image=@mute.mp4"]),
    (r"request\.image=.*hello\.wav is a sound file", ["request.image=@hello.wav"]),
    (r"request\.image is empty", ["request.image=null"]),
    (r"request\.audio is empty", ["request.audio="]),
    (r"request\.audio=.*nobody\.wav does not exist", ["request.audio=@nobody.wav"]),
    (r"request\.audio=.*empty\.wav is an empty file", ["request.audio=@empty.wav"]),
    (r"request\.audio=.*text\.txt is not a sound file", ["request.audio=@text.txt"]),
    (r"request\.audio=.*me\.png is not a sound file", ["request.audio=@me.png"]),
    (r"request\.audio=.*mute\.mp4 is a video without sound", ["request.audio=@mute.mp4"]),
    (r"request\.masks", ["request.audio=@hello.wav+@other.wav"]),
    (r"request\.masks", ["request.audio=@hello.wav+@other.wav", "request.masks=@mask.png"]),
    (r"request\.masks=.*gone\.png does", ["request.audio=@hello.wav+@other.wav", "request.masks=@gone.png+@me.png"]),
    (r"request\.pose=.*gone\.mp4 does not exist", ["request.pose=@gone.mp4"]),
    (r"request\.pose=.*me\.png holds no moving", ["request.pose=@me.png"]),
    (r"request\.size='4\*4'", ["request.size=4*4"]),
    (r"request\.size='big'", ["request.size=big"]),
    (r"request\.size=.*16777216", ["request.size=99999*99999"]),
    (r"request\.size=-1", ["request.size=-1"]),
    (r"request\.max_seconds=0", ["request.max_seconds=0"]),
    (r"request\.max_seconds=soon", ["request.max_seconds=soon"]),
    (r"request\.max_seconds=nan", ["request.max_seconds=nan"]),
    (r"seed='x'", ["seed=x"]),
    (r"seed=1\.5", ["seed=1.5"]),
    (r"sampler\.steps=0", ["sampler.steps=0"]),
    (r"sampler\.steps=9", ["sampler.steps=9"]),
    (r"^sampler", ["sampler.steps=many"]),
    (r"sampler\.shift=0", ["sampler.shift=0"]),
    (r"rollout\.frames_per_clip=80.*frames_per_clip=84", ["rollout.frames_per_clip=80"]),
    (r"rollout\.cache_frames=7", ["rollout.cache_frames=7"]),
    (r"rollout\.local_frames=1", ["rollout.local_frames=1"]),
    (r"speech\.context='half'", ["speech.context=half"]),
    (r"precision\.dit='float8'", ["precision.dit=float8"]),
    (r"fabric\.devices=0", ["fabric.devices=0"]),
    (r"fabric\.devices=17.*at most 16", ["fabric.devices=17"]),
    (r"fabric\.devices=17", ["fabric.devices=17", "+strategy=fsdp_stream"]),
    (r"fabric\.devices=True", ["fabric.devices=true"]),
    (r"fabric\.devices=2.*\+strategy=fsdp_stream", ["fabric.devices=2"]),
    (r"rollout=clipwise.*fabric\.devices=2", ["fabric.devices=2", "+strategy=fsdp_stream", "rollout=clipwise"]),
    (r"fabric\.threads=0", ["fabric.threads=0"]),
    (r"fabric\.threads='all'", ["fabric.threads=all"]),
    (r"fabric\.accelerator='abacus'", ["fabric.accelerator=abacus"]),
    (r"strategy\.slots=1", ["+strategy=fsdp_stream", "strategy.slots=1"]),
    (r"strategy\.source='moon'", ["+strategy=fsdp_stream", "strategy.source=moon"]),
    (r"output\.dir=.*cannot be written", ["output.dir=@text.txt/below"]),
    (r"output\.latents=.*cannot be written", ["output.latents=@text.txt/below"]),
]  # fmt: skip


@pytest.mark.parametrize(("message", "overrides"), MISTAKES, ids=[" ".join(given) for _, given in MISTAKES])
def test_a_mistake_is_named_and_costs_nothing(
    files: Path, message: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("models were built, or processes started")

    monkeypatch.setattr(import_module("liveavatar.assemble"), "build_parts", never)
    monkeypatch.setattr("lightning.fabric.Fabric.launch", never)
    before = sorted(files.rglob("*"))
    with pytest.raises(ValueError, match=message) as told:
        infer(compose("infer", _overrides(files, *overrides)))
    assert len(str(told.value)) < 600
    assert "Error in call to target" not in str(told.value)
    assert sorted(files.rglob("*")) == before
    assert not list(files.parent.rglob("out/*"))


def test_a_gpu_that_does_not_exist_is_not_asked_for(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"fabric\.accelerator=cuda.*fabric\.accelerator=cpu"):
        assemble(compose("infer", _overrides(files, "fabric.accelerator=cuda")))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"fabric\.devices=3, but cuda offers at most 2"):
        assemble(compose("infer", _overrides(files, "fabric.accelerator=cuda", "fabric.devices=3")))


def test_what_only_the_models_can_tell_is_told_before_denoising(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture too long for the area: found while it is read, when the models are there but nothing has run."""

    def never(*args: object) -> None:
        raise AssertionError("a block was denoised")

    monkeypatch.setattr(Rollout, "walk", never)
    Image.new("RGB", (640, 64)).save(files / "long.png")
    overrides = _overrides(files, "request.image=@long.png", "model.size_multiple=16")
    with pytest.raises(ValueError, match=r"request\.size"):
        infer(compose("infer", overrides))
    assert sorted(file.name for file in (files.parent / "out").iterdir()) == ["config.yaml", "run.log"]


def _frames(path: Path) -> int:
    return int(probe(path)["frames"])


@pytest.fixture
def full_after_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full once the first fragment is on it."""
    write_at = Mp4Writer._write_at
    done: list[int] = []

    def full(self: Mp4Writer, place: int, data: bytes) -> None:
        done.append(len(data))
        if len(done) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_at(self, place, data)

    monkeypatch.setattr(Mp4Writer, "_write_at", full)


def test_a_full_disk_keeps_what_was_finished(files: Path, full_after_one: None) -> None:
    write_wav(files / "long.wav", speech(1.5))
    with pytest.raises(OSError, match=r"output\.dir.*No space left"):
        infer(compose("infer", _overrides(files, "request.audio=@long.wav")))
    out = files.parent / "out"
    assert _frames(out / "avatar.mp4") == 9
    assert '"run/finished": false' in (out / "metrics.json").read_text()


@pytest.mark.parametrize("where", ["_sound", "_write_at"])
def test_an_interrupt_in_the_middle_of_a_chunk_leaves_that_chunk_out(
    files: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Pictures are never left without their sound, nor a fragment half on disk."""
    work = getattr(Mp4Writer, where)
    done: list[int] = []

    def interrupted(self: Mp4Writer, *given: Any) -> Any:
        done.append(1)
        made = work(self, *given)
        if len(done) == (2 if where == "_sound" else 4):
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(Mp4Writer, where, interrupted)
    write_wav(files / "long.wav", speech(1.5))
    with pytest.raises(KeyboardInterrupt):
        infer(compose("infer", _overrides(files, "request.audio=@long.wav")))
    found = probe(files.parent / "out" / "avatar.mp4")
    assert found["frames"] == 9
    assert abs(found["audio_seconds"] - found["video_seconds"]) < 0.07


def test_a_run_that_lost_its_video_has_failed_although_the_latents_are_there(files: Path, full_after_one: None) -> None:
    latents = files.parent / "kept.safetensors"
    write_wav(files / "long.wav", speech(1.5))
    with pytest.raises(OSError, match=r"output\.dir.*No space left"):
        infer(compose("infer", _overrides(files, "request.audio=@long.wav", f"output.latents={latents}")))
    assert latents.stat().st_size > 4 * (16 * 3 * 8 * 8) * 4  # all four blocks
    shutil.rmtree(files.parent / "out")


def test_a_sink_that_cannot_be_opened_closes_the_others(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = files / "gone" / "film.mp4"
    latents = files / "l.safetensors"
    with caplog.at_level(logging.CRITICAL), pytest.raises(OSError, match=r"film\.mp4"):
        infer(compose("infer", _overrides(files, f"sink.path={gone}", f"output.latents={latents}")))
    assert not list(files.glob("l.safetensors.*"))


def _encoded(path: Path, codec: str, rate: int, layout: str = "mono") -> Path:
    """Half a second of sound as another format, by its codec."""
    with av.open(str(path), "w") as container:
        track: Any = container.add_stream(codec, rate=rate, layout=layout)
        formats = {"mp3": "fltp", "aac": "fltp", "flac": "s16", "pcm_s16le": "s16"}
        sound = speech(0.5, rate=rate).astype(np.float32)
        channels = 2 if layout == "stereo" else 1
        if formats[codec] == "fltp":
            samples = np.stack([sound] * channels)
        else:
            samples = (np.stack([sound] * channels, axis=1) * 32767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format=formats[codec], layout=layout)
        frame.sample_rate = rate
        for packet in [*track.encode(frame), *track.encode(None)]:
            container.mux(packet)
    return path


VOICES = [
    ("a.mp3", "mp3", 44_100, "mono"), ("a.m4a", "aac", 48_000, "stereo"), ("a.flac", "flac", 44_100, "stereo"),
    ("a.wav", "pcm_s16le", 8_000, "mono"), ("b.wav", "pcm_s16le", 48_000, "stereo"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "codec", "rate", "layout"), VOICES, ids=[f"{v[0]}-{v[2]}" for v in VOICES])
def test_every_usual_voice_is_heard(files: Path, name: str, codec: str, rate: int, layout: str) -> None:
    _encoded(files / name, codec, rate, layout)
    with assemble(compose("infer", _overrides(files, f"request.audio=@{name}"))) as run:
        stream = run.session.prepare(run.request)
    assert abs((stream.info.total_frames or 0) - 0.5 * 25) <= 2
    assert np.abs(stream.gathered.voice.pcm).max() > 0.05


def _pictures(folder: Path) -> list[str]:
    """A picture with alpha, one of 16 bits, one for print, one that lies on its side."""
    base = Image.open(picture(folder / "wide.png", size=(128, 64)))
    base.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(np.linspace(0, 65535, 128 * 64).astype(np.uint16).reshape(64, 128)).save(folder / "deep.png")
    base.convert("CMYK").save(folder / "print.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    base.save(folder / "turned.jpg", exif=exif)
    return ["alpha.png", "deep.png", "print.jpg", "turned.jpg"]


def test_every_usual_picture_is_seen(files: Path) -> None:
    sizes = {}
    for name in _pictures(files):
        overrides = _overrides(files, f"request.image=@{name}", "request.size=64*128", "output.dir=null")
        request = make_request(compose("infer", overrides))
        check_request(request)
        image = load_image(request.image)
        sizes[name] = fit_size(image.height, image.width, request.size, 64)
        assert image.mode == "RGB"
    assert sizes.pop("turned.jpg") == (128, 64)
    assert set(sizes.values()) == {(64, 128)}
