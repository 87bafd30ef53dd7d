"""`python -m liveavatar.serve` as a user types it, with the micro model behind it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.soak import run as soak
from tests.ui.serving import Client

ROOT = Path(__file__).resolve().parent.parent.parent
LONG_S = 240.0


def _children(parent: int) -> list[int]:
    """Processes that this one has started, and they in turn."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, rest = stat.read_text().rsplit(")", 1)
        except OSError:  # it has just ended
            continue
        if int(rest.split()[1]) == parent:
            child = int(number.partition(" ")[0])
            found += [child, *_children(child)]
    return found


def _stream(port: int) -> Client:
    from websockets.sync.client import connect

    return Client(connect(f"ws://127.0.0.1:{port}/stream", open_timeout=60, close_timeout=0.2, max_size=None))


def test_help_comes_without_a_model(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; sys.argv[1:] = ['--help']; from liveavatar import serve; serve.main()",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    for words in ("server.host=0.0.0.0", "upload_mb: 16", "+strategy="):
        assert words in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_named_before_anything_loads() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "liveavatar.serve", "model=micro", f"server.port={port}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LONG_S)
    assert done.returncode == 2
    assert f"server.port={port}" in done.stderr
    assert "weights" not in done.stderr


def test_a_short_soak_of_the_micro_model(tmp_path: Path) -> None:
    """Real sessions and visitors for fifteen seconds; `python -m experiments.soak.run` goes on as long as you like."""
    out = ["--seconds", "15", "--every", "3", "--visitors", "3", "--out", str(tmp_path), "--log", str(tmp_path / "log")]
    code = soak.main([*out, "sampler.steps=1"])
    told = json.loads((tmp_path / "stamp.json").read_text())
    assert code == 0, told
    assert told["health_asked"] > 0
    assert not any(told["left"].values())
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_half_an_hour_of_visitors(tmp_path: Path) -> None:
    assert soak.main(["--seconds", "1800", "--out", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "stamp.json").read_text())
    gain, error = told["resident_mb_an_hour"]
    assert gain < 20 + 3 * error


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_rank_that_is_killed_ends_the_streams_with_a_word(tmp_path: Path) -> None:
    words = ["model=micro", "fabric.threads=1", "+strategy=fsdp_stream", "fabric.devices=2", "sampler.steps=1"]
    server, port = soak.serve(words, tmp_path / "log")
    try:
        with _stream(port.port) as client:
            client.start(format="mp4").until("ready")
            client.say("say", text="One rank listens, and two compute.")
            client.chunks(2)
            ranks = [
                child for child in _children(server.pid) if b"liveavatar" in Path(f"/proc/{child}/cmdline").read_bytes()
            ]
            os.kill(ranks[0], signal.SIGKILL)
            while (told := client.hear())["type"] != "error":
                pass
            assert told["code"] == "broken"
            assert len(client.video) >= 2
        until = time.monotonic() + 30
        while port.ask("/health")[0] != 503 and time.monotonic() < until:
            time.sleep(0.2)
        status, body = port.ask("/health")
        assert status == 503
        assert "Start the server again" in json.loads(body)["reason"]
    finally:
        server.terminate()
        assert server.wait(60) is not None
