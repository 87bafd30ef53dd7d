"""What ends a command becomes a message and an exit code; ^C ends one also where Python would lose it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from liveavatar.command import FAILED, MISTAKEN, Interrupts, told

LOST = """
import os, signal, sys, time
from liveavatar import infer, train

class Falls:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100):
            pass

def ends(cfg):
    if "stop" in words:
        Falls()
    if "wait" in words:
        time.sleep(60)
    raise ConnectionError("rank 1 has ended")

command, words = sys.argv[1], sys.argv[2:]
sys.argv[1:] = []
infer.infer = train.train = ends
{"infer": infer, "train": train}[command].main()
"""


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["infer", "stop"], 130, "interrupted"),
        (["infer", "stop", "wait"], 130, "interrupted"),
        (["infer"], 1, "rank 1 has ended"),
        (["train", "stop", "wait"], 130, "interrupted"),
    ],
)
def test_an_interrupt_that_python_loses_is_still_one(words: list[str], code: int, says: str) -> None:
    """Raised in a destructor it is dropped; what is seen next is more work, or that another rank has gone by it."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", LOST, *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert f"liveavatar: {says}" in done.stderr
    assert "Exception ignored" not in done.stderr
    assert time.monotonic() - began < 55


class _Falls:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100):
            pass


def test_an_interrupt_that_is_lost_twice_is_still_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is busy: the second one comes while the loss of the first is still being noticed."""
    again, times = Interrupts._again, []

    def slow(self: Interrupts) -> None:
        again(self)
        times.append(time.monotonic())
        if len(times) == 1:
            time.sleep(5 * Interrupts.AGAIN_S)

    monkeypatch.setattr(Interrupts, "_again", slow)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM), sys.unraisablehook
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:  # noqa: PT012  one of them must raise
        _Falls()
        time.sleep(30)
    assert interrupts.seen
    assert len(times) > 1
    assert time.monotonic() - began < 25
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM), sys.unraisablehook) == before


def test_what_ended_a_command_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(ValueError("steps=0: give 1 or more")) == MISTAKEN
    assert told(FileNotFoundError(2, "No such file or directory", "me.png")) == FAILED
    assert told(FloatingPointError("the loss is nan"), (FloatingPointError,)) == FAILED
    with pytest.raises(FloatingPointError):
        told(FloatingPointError("the loss is nan"))
    lines = ["steps=0: give 1 or more", "No such file or directory: me.png", "the loss is nan"]
    assert capsys.readouterr().err.splitlines() == [f"liveavatar: {line}" for line in lines]
    monkeypatch.setenv("RANK", "1")
    assert told(ValueError("the first rank tells")) == MISTAKEN
    assert not capsys.readouterr().err
