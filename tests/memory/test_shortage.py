"""A run that runs out of memory, through the real command line: one paragraph, a report, a film that plays."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from liveavatar.infer import main
from liveavatar.media.video import probe
from tests.memory.starved import starve
from tests.running import SMALL, command

ROOT = Path(__file__).resolve().parents[2]
PLACES = {
    "load": ({"phase": "load", "cells": []}, 0),
    "encode": ({"phase": "encode", "unit": "text", "cells": []}, 0),
    "steady": ({"phase": "steady", "unit": "blocks.1", "cells": [[1, 1]]}, 9),
    "decode": ({"phase": "decode", "unit": "vae", "cells": [[2, None]]}, 21),
}


def _arguments(out: Path) -> list[str]:
    return [*SMALL, "sampler.steps=2", "request.max_seconds=2", "profile.figure=false", f"output.dir={out}"]


def _starved(how: str, out: Path) -> tuple[int, str]:
    """In a process of its own."""
    typed = command(how, *_arguments(out), module="tests.memory.starved")
    done = subprocess.run(typed, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stderr


def _starved_here(
    how: str, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """The same command, in this process: quicker."""
    starve(how, monkeypatch.setattr)
    return _here(_arguments(out), monkeypatch, capsys)


def _here(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["liveavatar.infer", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().err


def _check(code: int, told: str, out: Path) -> dict[str, Any]:
    assert code == 1, told
    assert "Traceback" not in told
    said = [line for line in told.splitlines() if line.startswith("liveavatar:")]
    assert len(said) == 1
    assert "out of memory on the host" in said[0]
    assert str(out / "memory.json") in said[0]
    assert len(said[0]) < 900
    assert "Traceback" in (out / "run.log").read_text()  # for those who want to know
    failure = json.loads((out / "memory.json").read_text())["failure"]
    assert failure["advice"]
    return failure


@pytest.mark.parametrize("how", list(PLACES))
def test_a_shortage_names_its_place(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = _check(*_starved_here(how, tmp_path, monkeypatch, capsys), tmp_path)
    expected, frames = PLACES[how]
    assert {name: failure["where"][name] for name in expected} == expected
    assert failure["asked"] == 1 << 46
    assert 0 < failure["free"] < failure["total"]
    assert failure["held"]["process"]["host"] > 0
    if how in ("steady", "decode"):
        assert {"weights", "caches", "vae", "decoder"} <= set(failure["held"])
        assert json.loads((tmp_path / "metrics.json").read_text())["run/finished"] is False
    if frames:
        assert probe(tmp_path / "avatar.mp4")["frames"] >= frames


def test_an_address_space_that_ends_is_named(tmp_path: Path) -> None:
    failure = _check(*_starved("limit", tmp_path), tmp_path)
    assert failure["where"]["phase"] in ("prefill", "steady")
    assert failure["where"]["unit"] == "blocks.1"
    assert "ulimit -v" in failure["bound"]


def test_weights_that_can_never_lie_here_are_refused_before_they_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    huge = ["model.dit.dim=65536", "model.dit.ffn_dim=262144", "model.dit.num_heads=2", "model.dit.num_layers=200"]
    arguments = [*_arguments(tmp_path), *huge, "model.dit.audio_inject_layers=[0]"]
    code, told = _here(arguments, monkeypatch, capsys)
    assert code == 1, told
    assert "the weights alone take" in told
    assert "nothing was loaded" in told
    failure = json.loads((tmp_path / "memory.json").read_text())["failure"]
    assert failure["foreseen"] is True
    assert failure["asked"] > failure["total"]
