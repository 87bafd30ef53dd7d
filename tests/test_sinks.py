"""Sinks without media: one that fails never stops the others, latents come back bit for bit, a quiet bar."""

from __future__ import annotations

import errno
import io
import logging
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file

from liveavatar.sinks import Fanout, LatentSink, NullSink, ProgressSink
from liveavatar.types import StreamInfo, VideoChunk

INFO = StreamInfo(width=16, height=16, fps=25, audio_rate=0, total_frames=36, total_blocks=3)


def _chunk(index: int, latents: dict[int, torch.Tensor] | None = None) -> VideoChunk:
    silence = np.zeros(0, np.float32)
    return VideoChunk(index, 12 * index, torch.zeros(12, 3, 16, 16), silence, 0, latents=latents or {})


class _Witness:
    """Remembers what it was asked, and raises when asked for `broken`."""

    def __init__(self, broken: str = "", after: int = 0) -> None:
        self.calls: list[str] = []
        self.broken, self.after = broken, after

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if what == self.broken and self.calls.count(what) > self.after:
            raise OSError(errno.ENOSPC, f"no room to {what}")

    def open(self, info: StreamInfo) -> None:
        self._called("open")

    def write(self, chunk: VideoChunk) -> None:
        self._called("write")

    def close(self) -> None:
        self._called("close")


def test_every_sink_gets_everything_in_order() -> None:
    sinks = {"file": _Witness(), "page": _Witness(), "none": NullSink()}
    fanout = Fanout(sinks, essential=("file",))
    fanout.open(INFO)
    fanout.write(_chunk(0))
    fanout.write(_chunk(1))
    fanout.close()
    fanout.close()
    assert sinks["file"].calls == sinks["page"].calls == ["open", "write", "write", "close"]
    assert fanout.failures == {}


@pytest.mark.parametrize("broken", ["open", "write", "close"])
def test_a_failing_sink_is_told_once_closed_once_and_stops_nobody(
    broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    page, file = _Witness(broken), _Witness()
    fanout = Fanout({"page": page, "file": file}, essential=("file",))
    with caplog.at_level(logging.INFO):
        fanout.open(INFO)
        for index in range(3):
            fanout.write(_chunk(index))
        fanout.close()
    assert file.calls == ["open", "write", "write", "write", "close"]
    assert page.calls.count("close") == 1
    assert page.calls.count("write") == {"open": 0, "write": 1, "close": 3}[broken]
    assert list(fanout.failures) == ["page"]
    assert len(caplog.records) == 1
    assert "'page'" in caplog.text
    assert f"no room to {broken}" in caplog.text


def test_the_run_stops_when_the_last_essential_sink_has_failed() -> None:
    first, second, page = _Witness("write"), _Witness("write", after=1), _Witness()
    fanout = Fanout({"file": first, "copy": second, "page": page}, essential=("file", "copy"))
    fanout.open(INFO)
    fanout.write(_chunk(0))  # the copy still works
    with pytest.raises(OSError, match="no room to write") as caught:
        fanout.write(_chunk(1))
    assert caught.value is fanout.failures["copy"]
    assert page.calls == ["open", "write", "write"]  # it has had the chunk nonetheless
    fanout.close()  # does not raise again
    assert [sink.calls[-1] for sink in (first, second, page)] == ["close"] * 3
    assert [sink.calls.count("close") for sink in (first, second, page)] == [1, 1, 1]


def test_an_essential_sink_that_fails_to_open_or_close_is_not_passed_over() -> None:
    with pytest.raises(OSError, match="no room to open"):
        Fanout({"file": _Witness("open")}, essential=("file",)).open(INFO)
    page = _Witness()
    fanout = Fanout({"file": _Witness("close"), "page": page}, essential=("file",))
    fanout.open(INFO)
    with pytest.raises(OSError, match="no room to close"):
        fanout.close()
    assert page.calls == ["open", "close"]


def test_a_user_who_interrupts_is_obeyed() -> None:
    class Interrupted(NullSink):
        def write(self, chunk: VideoChunk) -> None:
            raise KeyboardInterrupt

    fanout = Fanout({"file": Interrupted()})
    with pytest.raises(KeyboardInterrupt):
        fanout.write(_chunk(0))
    assert fanout.failures == {}


def test_unknown_essential_sinks_are_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"no sink named film; there are: file"):
        Fanout({"file": NullSink()}, essential=("film",))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_latents_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "latents.safetensors"
    generator = torch.Generator().manual_seed(0)
    blocks = {index: torch.randn(16, 3, 4, 6, generator=generator).to(dtype) for index in range(5)}
    sink = LatentSink(path, {"config": '{"seed": 0, "prompt": "é"}', "threads": "2"})
    sink.open(INFO)
    sink.write(_chunk(0, {0: blocks[0]}))
    sink.write(_chunk(4, {index: blocks[index].transpose(2, 3).contiguous().transpose(2, 3) for index in (3, 1, 2, 4)}))
    assert not path.exists()  # until it is whole
    sink.close()
    sink.close()
    loaded = load_file(path)
    assert sorted(loaded) == [f"block_{index:05d}" for index in range(5)]
    for index, latents in blocks.items():
        assert loaded[f"block_{index:05d}"].dtype == dtype
        assert torch.equal(loaded[f"block_{index:05d}"], latents)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"config": '{"seed": 0, "prompt": "é"}', "threads": "2"}
    assert [file.name for file in tmp_path.iterdir()] == ["latents.safetensors"]


def test_a_stream_without_a_block_leaves_a_file_without_a_block(tmp_path: Path) -> None:
    sink = LatentSink(tmp_path / "latents.safetensors", {"threads": "1"})
    sink.close()  # never opened: nothing to keep
    assert list(tmp_path.iterdir()) == []
    sink.open(INFO)
    sink.close()
    assert load_file(tmp_path / "latents.safetensors") == {}


def test_latents_of_a_long_stream_do_not_pile_up_in_memory(tmp_path: Path) -> None:
    latents = torch.zeros(16, 3, 32, 32)  # 196 kB
    sink = LatentSink(tmp_path / "latents.safetensors", {})
    sink.open(INFO)
    sink.write(_chunk(0, {0: latents}))
    tracemalloc.start()
    for index in range(1, 100):
        sink.write(_chunk(index, {index: latents}))
    sink.close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6  # 20 MB went by
    assert len(load_file(tmp_path / "latents.safetensors")) == 100


def test_bad_latents_are_named(tmp_path: Path) -> None:
    sink = LatentSink(tmp_path / "latents.safetensors", {})
    sink.open(INFO)
    sink.write(_chunk(0, {0: torch.zeros(16, 3, 2, 2)}))
    with pytest.raises(ValueError, match="block_00000 came twice"):
        sink.write(_chunk(0, {0: torch.zeros(16, 3, 2, 2)}))
    with pytest.raises(ValueError, match=r"block_00001 is torch\.int64"):
        sink.write(_chunk(1, {1: torch.zeros(16, 3, 2, 2, dtype=torch.long)}))
    sink.close()
    assert list(load_file(tmp_path / "latents.safetensors")) == ["block_00000"]


def test_latents_on_a_full_disk(tmp_path: Path) -> None:
    class Full(io.FileIO):
        def write(self, data) -> int:
            super().write(bytes(data)[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "latents.safetensors"
    sink = LatentSink(path, {})
    sink.open(INFO)
    sink.write(_chunk(0, {0: torch.ones(16, 3, 2, 2)}))
    sink._file.close()
    sink._file = Full(tmp_path / "latents.safetensors.part", "ab")
    with pytest.raises(OSError, match=r"output\.dir: .*No space left") as caught:
        sink.write(_chunk(1, {1: torch.zeros(16, 3, 2, 2)}))
    assert caught.value.errno == errno.ENOSPC
    sink.close()  # there is room again: the whole blocks are kept, the piece of one is not
    assert list(load_file(path)) == ["block_00000"]
    with pytest.raises(FileNotFoundError, match=r"output\.dir"):
        LatentSink(tmp_path / "no" / "latents.safetensors", {}).open(INFO)


def test_the_bar_counts_blocks_and_seconds() -> None:
    screen = io.StringIO()
    sink = ProgressSink(Console(file=screen, force_terminal=True, width=100))
    sink.open(INFO)
    sink.write(_chunk(0))
    sink.write(_chunk(2))  # a piece of two blocks
    sink.close()
    sink.close()
    assert "3/3" in screen.getvalue()
    assert "1.0 s of video" in screen.getvalue()


def test_the_bar_is_silent_without_a_terminal(capfd: pytest.CaptureFixture) -> None:
    screen = io.StringIO()
    for sink in (ProgressSink(Console(file=screen)), ProgressSink()):
        sink.open(INFO)
        sink.write(_chunk(0))
        sink.close()
    assert screen.getvalue() == ""
    assert capfd.readouterr() == ("", "")
