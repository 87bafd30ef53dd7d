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
from liveavatar.strategies.faults import Late, Roll, naming, of_transport
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


STREAM, FULL = ("+strategy=fsdp_stream",), ("+strategy=fsdp_full",)
STEPS, LAYERS = ("+strategy=timestep_pipeline",), ("+strategy=diagonal_pipeline",)
DECODE = "parallel.decode=rank"
PLACE = r"block \d+, step \d"
UNIT = r"unit [\w./]+"
"""Names of parts of a unit hold a slash: adain.1/voice."""
STEPS_OF = r"steps? \d(-\d)?"
"""Which steps a rank takes is the plan's to choose."""

SHARED = ("+strategy=replicated", "parallel.ulysses_size=2", "parallel.decode=split", "fabric.devices=2")

KILLED = [
    (STREAM, 1, rf"rank 1 has ended\. Rank \d noticed it while gathering {UNIT} \(at {PLACE}\)"),
    ((*STEPS, DECODE), 0, rf"rank 0 \(decodes\) has ended\. Rank \d noticed it while giving it the latents of {PLACE}"),
    (SHARED, 1, r"rank 1 has ended\. Rank 0 noticed it while sharing a cell or a picture with ranks 0-1"),
    (LAYERS, 2, rf"rank 2 \(steps 0-3 × layer 0\) has ended\. Rank \d noticed it while .* \(at {PLACE}\)"),
]
"""Strategy, the rank that is killed, and what is said of it."""

MORE = [
    (STREAM, 0, rf"rank 0 has ended\. Rank \d noticed it while gathering {UNIT} \(at {PLACE}\)"),
    (FULL, 1, rf"rank 1 has ended\. Rank \d noticed it \(at {PLACE}\)"),
    (STEPS, 0, rf"rank 0 \({STEPS_OF} × layers 0-2\) has ended\. Rank \d noticed it while .* {PLACE}"),
    (STEPS, 1, rf"rank 1 \({STEPS_OF} × layers 0-2\) has ended\. Rank \d noticed it while .* {PLACE}"),
    (
        (*LAYERS, DECODE),
        0,
        rf"rank 0 \(decodes\) has ended\. Rank \d noticed it while giving it the latents of {PLACE}",
    ),
    (LAYERS, 0, rf"rank 0 \(steps 0-3 × layer 2\) has ended\. Rank \d noticed it while .* {PLACE}"),
    (LAYERS, 1, rf"rank 1 \(steps 0-3 × layer 1\) has ended\. Rank \d noticed it while .* {PLACE}"),
]


def _named(case: tuple[tuple[str, ...], int, str]) -> str:
    return "-".join([*case[0], f"rank_{case[1]}"])


@pytest.mark.parametrize(
    ("strategy", "victim", "words"),
    [pytest.param(*case, id=_named(case)) for case in KILLED]
    + [pytest.param(*case, id=_named(case), marks=pytest.mark.slow) for case in MORE],
)
def test_a_killed_rank_ends_the_others_and_leaves_a_playable_video(
    tmp_path: Path, strategy: tuple[str, ...], victim: int, words: str
) -> None:
    asked = [word for word in ASKED if not word.startswith(("sink", "request", "rollout"))]
    options = ["fabric.devices=3", *strategy, "output.dir=run", "request.size=64*64"]
    command = [sys.executable, "-m", "liveavatar.infer", *asked, *options, f"request.audio={_long_voice(tmp_path)}"]
    with (tmp_path / "said").open("w") as said:
        run = subprocess.Popen(command, cwd=tmp_path, env=clean_environment(), stdout=said, stderr=said)
        ranks = [run.pid]
        try:
            video = tmp_path / "run" / "avatar.mp4"
            _until(lambda: video.is_file() and _frames(video) >= 12, run, 180)
            ranks += children_of(run.pid)
            assert len(ranks) == (2 if strategy == SHARED else 3)
            began = time.monotonic()
            os.kill(ranks[victim], signal.SIGKILL)
            code = run.wait(SOON_S)
            _until(lambda: not any(_alive(pid) for pid in ranks), None, SOON_S - (time.monotonic() - began))
        finally:
            for pid in filter(_alive, ranks):
                os.kill(pid, signal.SIGKILL)
            run.wait(10)
    text = (tmp_path / "said").read_text()
    assert code == (1 if victim else -signal.SIGKILL), text[-3000:]
    assert re.search(words, text), text[-3000:]
    told = [line for line in text.splitlines() if line.startswith("liveavatar:")]
    assert len(told) == 1 or victim == 0, text  # without rank 0 the others cannot agree on who tells
    assert "Traceback" not in text, text[-3000:]
    assert len(text) < 2500
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


def test_a_failure_of_the_transport_is_told_from_any_other() -> None:
    gone = "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer\nframe #0"
    words = r"^gathering unit head\. The transport says: Connection closed by peer$"
    with pytest.raises(Late, match=words) as late, naming("gathering unit head"):
        raise RuntimeError(gone)
    assert of_transport(late.value)
    with pytest.raises(RuntimeError, match="shapes"), naming("gathering unit head"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert not of_transport(OSError("No space left on device"))


def test_the_roll_knows_who_has_ended() -> None:
    short = subprocess.Popen([sys.executable, "-c", "pass"])
    roll = Roll(1)
    roll.processes = [*roll.processes, (roll.processes[0][0], short.pid), ("another machine", short.pid)]
    _until(lambda: not _alive(short.pid), None, 30)
    assert roll.ended() == [1]  # not yet waited for, and yet gone; of another machine nothing is known
    lost = roll.lost(0, ["", "step 3", ""], Late("waiting for news", "silence"), 5)
    assert str(lost).startswith("rank 1 (step 3) has ended. Rank 0 noticed it while waiting for news; what was")
    assert lost.tells
    short.wait()
    roll.processes = roll.processes[:1]
    late = roll.lost(0, ["step 0"], Late("waiting for news", "silence", 0), 5)
    assert str(late).startswith("rank 0 (step 0) has ended, or needs longer than strategy.timeout_s=5. Rank 0")
    assert roll.lost(0, [""], lost, 5) is lost
