"""Sound from standard input into the files of a run, and what is left when something fails."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file

from liveavatar.config import compose
from liveavatar.infer import infer
from liveavatar.live.avatar import Avatar
from liveavatar.live.command import run_live
from liveavatar.live.feeds import push_file
from liveavatar.media.video import probe
from liveavatar.types import StreamInfo, VideoChunk
from tests.live.scene import HEARS, pcm
from tests.running import SMALL, write_wav
from tests.strategies.launch import clean_environment
from tests.strategies.test_faults import children_of


def asked(folder: Path, image: Path, *words: str) -> DictConfig:
    common = (*SMALL, *HEARS, f"request.image={image}", f"output.dir={folder}", "profile.figure=false")
    return compose("infer", [*common, *words])


def test_standard_input_gives_the_latents_of_the_file(tmp_path: Path, image: Path) -> None:
    sound = pcm(1.2)
    wav = write_wav(tmp_path / "voice.wav", sound / 32767.0)
    infer(asked(tmp_path / "file", image, f"request.audio={wav}", f"output.latents={tmp_path / 'file.st'}"))
    words = ("request.audio=-", f"output.latents={tmp_path / 'live.st'}", "request.max_seconds=1.2", "sink=mp4")
    metrics = run_live(asked(tmp_path / "live", image, *words), io.BytesIO(sound.tobytes() + b"\x01" * 4001))
    ours, theirs = load_file(tmp_path / "live.st"), load_file(tmp_path / "file.st")
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    video = probe(tmp_path / "live" / "avatar.mp4")
    assert video["frames"] == 30
    assert metrics["run/finished"] is True
    assert metrics["live/pushed_s"] == pytest.approx(1.2)
    assert metrics["live/held_bytes"] > 0
    assert json.loads((tmp_path / "live" / "metrics.json").read_text())["live/blocks"] == 3


class FullDisk:
    """A sink that takes two chunks."""

    taken: list[int] = []  # noqa: RUF012  filled by the test's own run

    def __init__(self, path: str) -> None:
        self.taken.clear()

    def open(self, info: StreamInfo) -> None:
        pass

    def write(self, chunk: VideoChunk) -> None:
        if len(self.taken) == 2:
            raise OSError(errno.ENOSPC, "output.dir: No space left on device")
        self.taken.append(chunk.index)

    def close(self) -> None:
        pass


def test_a_full_disk_ends_the_run_and_what_was_made_is_kept(tmp_path: Path, image: Path) -> None:
    sink = "sink._target_=tests.live.test_command.FullDisk"
    with pytest.raises(OSError, match="No space left"):
        run_live(asked(tmp_path, image, "request.audio=-", sink), io.BytesIO(pcm(4.0).tobytes()))
    assert FullDisk.taken == [0, 1]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["run/finished"] is False
    assert metrics["live/blocks"] == 3  # and none after it


def test_a_sink_that_fails_leaves_the_others_and_is_told_at_the_end(tmp_path: Path, image: Path) -> None:
    words = ("request.audio=-", "sink._target_=tests.live.test_command.FullDisk", f"output.latents={tmp_path / 'l.st'}")
    with pytest.raises(OSError, match="No space left"):
        run_live(asked(tmp_path / "run", image, *words), io.BytesIO(pcm(2.0).tobytes()))
    assert len(load_file(tmp_path / "l.st")) == 5


def test_what_cannot_be_live_is_said_before_anything_is_loaded(tmp_path: Path, image: Path) -> None:
    with pytest.raises(ValueError, match=r"request\.masks"):
        run_live(asked(tmp_path, image, "request.audio=-", f"request.masks={image}"), io.BytesIO())
    with pytest.raises(ValueError, match=r"request\.image"):
        run_live(asked(tmp_path, tmp_path / "nobody.png", "request.audio=-"), io.BytesIO())


def test_a_file_can_be_pushed(avatar: Avatar, image: Path, tmp_path: Path) -> None:
    session = avatar.session(image, decode=False)
    assert push_file(session, write_wav(tmp_path / "a.wav", pcm(0.5, rate=44_100) / 32767.0, 44_100)) == 0.5
    session.finish()
    assert sum(len(chunk.frames) for chunk in session) == 12
    with avatar.session(image, decode=False) as session, pytest.raises(ValueError, match="does not exist"):
        push_file(session, tmp_path / "none.wav")


def test_a_killed_rank_ends_the_stream_and_leaves_a_playable_video(tmp_path: Path, image: Path) -> None:
    """Two processes that the command starts itself; the second is killed while sound still comes in."""
    words = ["+strategy=fsdp_stream", "fabric.devices=2", "request.audio=-", "output.dir=run", f"request.image={image}"]
    command = [sys.executable, "-m", "liveavatar.infer", *SMALL, *HEARS, *words]
    with (tmp_path / "said").open("w") as said:
        run = subprocess.Popen(
            command, cwd=tmp_path, env=clean_environment(), stdin=subprocess.PIPE, stdout=said, stderr=said
        )
        ranks = [run.pid]
        try:
            assert run.stdin is not None
            run.stdin.write(pcm(2.0).tobytes())
            run.stdin.flush()
            _until(lambda: _frames(tmp_path / "run" / "avatar.mp4") >= 9, run)
            ranks += children_of(run.pid)
            assert len(ranks) == 2
            os.kill(ranks[1], signal.SIGKILL)
            with suppress(BrokenPipeError):
                run.stdin.write(pcm(2.0).tobytes())
                run.stdin.flush()
            code = run.wait(120)
        finally:
            for pid in ranks:
                if Path(f"/proc/{pid}").exists():
                    os.kill(pid, signal.SIGKILL)
            run.wait(10)
    text = (tmp_path / "said").read_text()
    assert code == 1, text[-3000:]
    assert re.search(r"liveavatar: rank 1 has ended\. Rank 0 noticed it", text), text[-3000:]
    assert "Traceback" not in text
    assert _frames(tmp_path / "run" / "avatar.mp4") >= 9
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["run/finished"] is False
    assert metrics["live/blocks"] >= 1


def _frames(video: Path) -> int:
    try:
        return probe(video)["frames"]
    except (OSError, ValueError):
        return 0


def _until(reached: object, run: subprocess.Popen) -> None:
    end = time.monotonic() + 240
    while not reached():  # type: ignore[operator]
        assert time.monotonic() < end, "it took too long"
        assert run.poll() is None, "the run ended by itself"
        time.sleep(0.1)
