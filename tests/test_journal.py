"""Every run leaves a line a piece under stable names, and W&B what it was asked for; neither can stop a run."""

from __future__ import annotations

import json
import logging
import math
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from liveavatar.assemble import assemble
from liveavatar.board import NoBoard, WandbBoard, memory_table
from liveavatar.config import compose
from liveavatar.journal import Journal, measured, read_journal
from liveavatar.types import StreamInfo, VideoChunk
from tests.running import SMALL

ASKED = [*SMALL, "request.max_seconds=0.84", "profile.figure=false"]
LINE = {
    "chunk/index", "chunk/frame", "chunk/frames", "chunk/time_s", "speed/denoise_s", "speed/decode_s", "speed/wall_s",
    "speed/fps", "picture/luma", "picture/contrast", "picture/red", "picture/green", "picture/blue", "memory/host",
    "traffic/host_bytes", "traffic/received_bytes", "traffic/sent_bytes", "traffic/unit_fetches",
}  # fmt: skip


def _chunk(value: float, index: int = 0) -> VideoChunk:
    frames = torch.full((2, 3, 4, 4), value)
    sound = np.zeros(1280, np.float32)
    return VideoChunk(index, 2 * index, frames, sound, 16_000, timings={"denoise": 0.5, "decode": 0.5, "wall": 2.0})


def _run(folder: Path, *words: str) -> dict[str, Any]:
    with assemble(compose("infer", [*ASKED, f"output.dir={folder}", *words])) as run:
        for _ in run.chunks():
            pass
    return run.metrics


def test_a_line_says_what_was_seen() -> None:
    grey, white = measured(_chunk(0.0), 1.0), measured(_chunk(1.0), 1.0)
    assert grey["picture/luma"] == pytest.approx(0.5)
    assert white["picture/luma"] == pytest.approx(1.0)
    assert grey["picture/contrast"] == pytest.approx(0.0, abs=1e-6)
    assert grey["speed/fps"] == pytest.approx(2.0)  # two frames in a second of work
    red = _chunk(-1.0)
    red.frames[:, 0] = 1.0
    assert measured(red, 0.0)["picture/luma"] == pytest.approx(0.2126)
    half = _chunk(-1.0)
    half.frames[..., :2] = 1.0
    assert measured(half, 0.0)["picture/contrast"] == pytest.approx(0.5)


def test_lines_are_on_the_disk_at_once_and_a_cut_one_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl", lambda: {"memory/host": 7})
    journal.open(StreamInfo(4, 4, 25, 16_000, None))
    journal.write(_chunk(0.0))
    journal.write(_chunk(0.0, 1))
    with journal.path.open("a") as file:  # as a killed process leaves it
        file.write('{"chunk/index": 2, "chu')
    lines = read_journal(journal.path)
    assert [line["chunk/index"] for line in lines] == [0, 1]
    assert all(line["memory/host"] == 7 for line in lines)
    journal.close()


def test_a_run_leaves_lines_and_at_least_25_named_values(tmp_path: Path) -> None:
    metrics = _run(tmp_path, "+strategy=fsdp_stream")
    lines = read_journal(tmp_path / "metrics.jsonl")
    assert len(lines) == 2
    assert all(set(line) == LINE for line in lines)
    assert lines[-1]["traffic/host_bytes"] > lines[0]["traffic/host_bytes"] > 0
    kept = json.loads((tmp_path / "metrics.json").read_text())
    assert kept == metrics
    named = {key for key, value in kept.items() if "/" in key and isinstance(value, (int, float)) and key[:4] != "run/"}
    assert len(named) >= 25, sorted(named)
    assert all(math.isfinite(kept[key]) for key in named)


class _Broken(NoBoard):
    def __init__(self, when: str) -> None:
        setattr(self, when, self.fail)

    def fail(self, *given: Any) -> None:
        raise RuntimeError("no such network")


@pytest.mark.parametrize("when", ["start", "step", "finish"])
def test_a_board_that_raises_never_stops_a_run(tmp_path: Path, when: str) -> None:
    with assemble(compose("infer", [*ASKED, f"output.dir={tmp_path}", "request.max_seconds=0.3"])) as run:
        run.board = _Broken(when)
        frames = sum(len(chunk.frames) for chunk in run.chunks())
    assert frames > 0
    assert run.metrics["run/finished"]
    assert (tmp_path / "avatar.mp4").stat().st_size > 0


def test_wrong_words_for_the_logger_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"logger\.mode='cloud' is unknown; write offline or online"):
        WandbBoard(mode="cloud")
    monkeypatch.setattr("liveavatar.board.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"logger=wandb, but wandb is not installed: pip install"):
        WandbBoard()


def test_a_timeline_is_thinned_for_a_table(tmp_path: Path) -> None:
    timeline = {
        "seconds": list(range(1000)),
        "phase": ["steady"] * 1000,
        "host": [2e9] * 1000,
        "allocated": [None] * 1000,
    }
    (tmp_path / "memory.json").write_text(json.dumps({"timeline": timeline}))
    found = memory_table(tmp_path / "memory.json", most=100)
    assert found is not None
    columns, rows = found
    assert columns == ["seconds", "phase", "host", "allocated"]
    assert len(rows) == 100
    assert rows[1] == [10, "steady", 2.0, None]
    assert memory_table(tmp_path / "none.json") is None


BLOCK, HEAD = 32_768, 7


def _records(data: bytes) -> Iterator[Any]:
    """The records of a .wandb file: protobuf messages in LevelDB's log format behind 7 bytes of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    assert data[:4] in (b":W&B", b"")
    at, whole = 7, b""
    while at + HEAD <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEAD:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEAD])
        if at + HEAD + length > len(data):
            return  # still being written
        whole += data[at + HEAD : at + HEAD + length]
        at += HEAD + length
        if kind in (1, 4):  # a whole one, or the last piece of one
            yield Record.FromString(whole)
            whole = b""


def _whole(path: Path, wait_s: float = 30.0) -> list[Any]:
    """Every record of a run that has ended: W&B's own process writes the last of them after `finish` has returned."""
    until = time.monotonic() + wait_s
    while True:
        found = list(_records(path.read_bytes()))
        if any(record.WhichOneof("record_type") == "exit" for record in found) or time.monotonic() > until:
            return found
        time.sleep(0.05)


def _folded(folder: Path) -> dict[str, Any]:
    """What an offline W&B folder holds: run, config, lines, summary and files."""
    found: dict[str, Any] = {"config": {}, "lines": [], "summary": {}, "files": []}
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    for record in _whole(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            found["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            items = record.history.item
            found["lines"].append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
        elif kind == "summary":
            for item in record.summary.update:
                found["summary"][item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        elif kind == "files":
            found["files"] += [item.path for item in record.files.files]
    return found


def test_an_offline_folder_holds_the_whole_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (extra train)")
    metrics = _run(tmp_path, "logger=wandb", "logger.group=sizes")
    found = _folded(tmp_path)
    assert (found["run"].project, found["run"].run_group) == ("liveavatar", "sizes")
    assert (found["run"].job_type, found["run"].display_name) == ("single_device", tmp_path.name)
    assert found["config"]["model"]["name"] == "micro"  # resolved
    assert found["config"]["about"]["run/torch"] == torch.__version__.split("+")[0]
    assert found["config"]["about"]["run/cores"]
    lines = [line for line in found["lines"] if "chunk/index" in line]
    journal = read_journal(tmp_path / "metrics.jsonl")
    assert [{key: line[key] for key in LINE} for line in lines] == [
        {key: line[key] for key in LINE} for line in journal
    ]
    assert found["summary"]["speed/rtf"] == pytest.approx(metrics["speed/rtf"])
    last = {key: value for line in found["lines"] for key, value in line.items()}
    assert last["speed/piece_s._type"] == "histogram"
    assert last["memory/timeline._type"] == "table-file"
    assert last["video._type"] == "video-file"
    assert any(path.endswith(".mp4") for path in found["files"])


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B with a server that nobody runs; it reads its settings once a process, so it begins anew before and after."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed (extra train)")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.usefixtures("no_server")
def test_a_lost_network_leaves_a_run_and_its_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    board = WandbBoard(mode="online", timeout_s=3)
    with caplog.at_level(logging.WARNING, "liveavatar.board"):
        board.start(tmp_path, {"seed": 1}, {"strategy": "single_device"}, "together")
        board.step(0, {"speed/fps": 2.0})
        board.finish({"run/finished": True, "speed/rtf": 1.5})
    assert "kept offline" in caplog.text
    found = _folded(tmp_path)
    assert found["run"].run_group == "together"
    assert found["summary"]["speed/rtf"] == 1.5
