"""A rank that dies ends the others soon, and what was finished until then stays playable."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from liveavatar.media.video import probe
from tests.strategies.launch import clean_environment
from tests.strategies.test_cli import ASKED

SOON_S = 30.0


def children_of(parent: int) -> list[int]:
    """Processes that this one has started, oldest first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return sorted(found)


SHARED = ("+strategy=replicated", "fabric.devices=2", "parallel.ulysses_size=2", "parallel.decode=split")


@pytest.mark.parametrize(
    ("strategy", "others", "said"),
    [
        (
            ("+strategy=diagonal_pipeline", "fabric.devices=3"),
            2,
            r"rank [12] \(steps 0-3 × layer \d\) has ended or is too late \(.* of block \d+, step \d\)",
        ),
        (SHARED, 1, r"rank 0 waited in vain for another of ranks 0-1, which share its work: it has ended"),
    ],
    ids=["diagonal_pipeline", "shared_cells"],
)
def test_a_killed_rank_ends_the_others_and_leaves_a_playable_video(
    tmp_path: Path, strategy: tuple[str, ...], others: int, said: str
) -> None:
    asked = [word for word in ASKED if not word.startswith(("sink", "request", "rollout"))]
    options = [*strategy, "output.dir=run", "request.size=64*64"]
    command = [sys.executable, "-m", "liveavatar.infer", *asked, *options, f"request.audio={_long_voice(tmp_path)}"]
    environment = clean_environment()
    with (tmp_path / "said").open("w") as file:
        run = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=file, stderr=file)
        try:
            video = tmp_path / "run" / "avatar.mp4"
            _until(lambda: video.is_file() and _frames(video) >= 12, run, 120)
            workers = children_of(run.pid)
            assert len(workers) == others
            began = time.monotonic()
            os.kill(workers[-1], signal.SIGKILL)
            code = run.wait(SOON_S)
            _until(lambda: not any(_alive(pid) for pid in workers), None, SOON_S - (time.monotonic() - began))
        finally:
            for pid in [*children_of(run.pid), run.pid]:
                if run.poll() is None or pid != run.pid:
                    os.kill(pid, signal.SIGKILL)
            run.wait(10)
    text = (tmp_path / "said").read_text()
    assert code == 1, text[-3000:]
    assert re.search(said, text), text[-3000:]
    assert "Traceback" not in text, text[-3000:]
    assert _frames(video) >= 12


def _long_voice(folder: Path) -> Path:
    """Far more sound than a test has time to make pictures for."""
    samples = np.random.default_rng(0).integers(-3000, 3000, 50 * 16000, dtype=np.int16)
    with wave.open(str(folder / "voice.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(samples.tobytes())
    return folder / "voice.wav"


def _frames(video: Path) -> int:
    try:
        return probe(video)["frames"]
    except (OSError, ValueError):
        return 0


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _until(reached: Callable[[], bool], run: subprocess.Popen | None, limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not reached():
        assert time.monotonic() < end, "it took too long"
        assert run is None or run.poll() is None, "the run ended by itself"
        time.sleep(0.1)
