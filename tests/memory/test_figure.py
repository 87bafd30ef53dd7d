"""The figure and its command: drawn from a file alone, refused in words."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from liveavatar.memory import figure
from liveavatar.memory.__main__ import main
from liveavatar.memory.figure import draw, draw_if_possible
from liveavatar.memory.profiler import MemoryProfiler, Prediction


def _document(folder: Path, device: str = "cpu") -> Path:
    memory = MemoryProfiler(torch.device("cpu"), plan=Prediction({"load": 10**8, "encode": 2 * 10**8}))
    memory.ledger.add(lambda: {"weights": (6 * 10**7, 3 * 10**7), "mine": (10**6, 0)})
    memory.read()
    with memory.phase("encode"):
        torch.ones(10**6)
    memory.end()
    path = memory.write(folder)
    assert path is not None
    document: dict[str, Any] = json.loads(path.read_text())
    if device != "cpu":
        table = document["timeline"]
        count = len(table["seconds"])
        document["device"] = device
        table |= {
            "allocated": [7 * 10**7] * count,
            "reserved": [10**8] * count,
            "driver": [None, *[10**9] * (count - 1)],
        }
        path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_figure_is_drawn_from_the_file_alone(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="comes with the extra `figures`")
    _document(tmp_path, device)
    monkeypatch.setattr("sys.argv", ["memory", str(tmp_path), "--out", str(tmp_path / "mine.png")])
    assert main() == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "mine.png")
    with Image.open(tmp_path / "mine.png") as picture:
        assert picture.width > 1000
        assert len(set(picture.convert("RGB").resize((200, 120), Image.Resampling.NEAREST).getdata())) > 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory.json", "mine.png"]


def test_without_matplotlib_the_file_and_a_word_remain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = _document(tmp_path)
    monkeypatch.setattr(figure, "find_spec", lambda name: None)
    monkeypatch.setattr(logging.getLogger("liveavatar"), "propagate", True)
    with caplog.at_level("INFO", logger="liveavatar"):
        assert draw_if_possible(path) is None
    assert "liveavatar[figures]" in caplog.text
    with pytest.raises(ValueError, match=r"liveavatar\[figures\]"):
        draw(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "cannot be read"), ("{", "no memory.json"), ("[]", "format 1"), ('{"format": 2}', "format 1")],
)
def test_what_is_no_record_is_refused(
    tmp_path: Path, text: str | None, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "memory.json").write_text(text)
    monkeypatch.setattr(figure, "find_spec", lambda name: name)
    pytest.importorskip("matplotlib", reason="comes with the extra `figures`")
    monkeypatch.setattr("sys.argv", ["memory", str(tmp_path)])
    assert main() == 2
    assert words in capsys.readouterr().err
