"""A list of requests from its file to its folders: weights load once, and one bad request does not stop the others."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from liveavatar.config import compose
from liveavatar.infer import infer
from liveavatar.media.image import load_image
from liveavatar.media.mp4 import Mp4Writer
from liveavatar.media.video import probe
from tests.running import SMALL, picture, run_command, speech, write_wav

LATENTS = "output.latents=latents.safetensors"

assembling = import_module("liveavatar.assemble")  # the package offers the function of that name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "me.png")
    picture(tmp_path / "you.png", seed=1)
    for name, seconds in (("short", 0.6), ("long", 1.1)):
        write_wav(tmp_path / f"{name}.wav", speech(seconds))
    return tmp_path


def _overrides(folder: Path, *lines: dict[str, Any], more: tuple[str, ...] = ()) -> list[str]:
    (folder / "list.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    given = [f"request.image={folder}/me.png", f"request.audio={folder}/short.wav", f"requests={folder}/list.jsonl"]
    return [*SMALL, *given, f"output.dir={folder}/out", LATENTS, *more]


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "requests.jsonl").read_text().splitlines()]


def _latents(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "latents.safetensors")


def test_each_request_leaves_what_a_run_of_its_own_would_leave(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    real = assembling.build_parts
    monkeypatch.setattr(assembling, "build_parts", lambda *given: built.append(1) or real(*given))
    prompt = "It costs ${seed} dollars."
    lines = ({"seed": 3, "prompt": prompt}, {"image": f"{folder}/you.png", "audio": f"{folder}/long.wav"})
    metrics = infer(compose("infer", _overrides(folder, *lines)))
    assert built == [1]
    assert metrics["run/finished"] is True
    assert (metrics["requests/finished"], metrics["requests/failed"], metrics["requests/total"]) == (2, 0, 2)
    assert json.loads((folder / "out" / "metrics.json").read_text()) == metrics
    assert [(row["status"], row["line"], row["rank"]) for row in _rows(folder)] == [
        ("finished", 1, 0),
        ("finished", 2, 0),
    ]
    assert all(row["speed/rtf"] > 0 for row in _rows(folder))
    for name in ("0001-me", "0002-you"):
        here = folder / "out" / name
        files = {
            "about.json",
            "avatar.mp4",
            "config.yaml",
            "latents.safetensors",
            "memory.json",
            "memory.png",
            "metrics.json",
            "metrics.jsonl",
            "run.log",
        }
        assert {path.name for path in here.iterdir()} == files
        assert json.loads((here / "metrics.json").read_text())["run/finished"] is True
        assert "picture 64×64" in (here / "run.log").read_text()
        assert str(here) not in (folder / "out" / "0001-me" / "run.log").read_text() or name == "0001-me"
    alone = [f"request.image={folder}/you.png", f"request.audio={folder}/long.wav", "requests=null"]
    alone += [f"output.dir={folder}/alone", f"output.latents={folder}/alone/latents.safetensors"]
    infer(compose("infer", [*_overrides(folder, *lines), *alone]))
    ours, theirs = _latents(folder / "out" / "0002-you"), _latents(folder / "alone")
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (
        probe(folder / "out" / "0002-you" / "avatar.mp4")["frames"] == probe(folder / "alone" / "avatar.mp4")["frames"]
    )


def test_one_bad_request_does_not_stop_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One refused at once, one whose picture vanishes later, one whose disk fails, and two that come through."""
    seen: list[Path] = []

    def vanishing(path: Path) -> Any:
        seen.append(path)
        if path.name == "you.png" and seen.count(path) > 1:
            raise ValueError(f"request.image={path} does not exist")
        return load_image(path)

    def full(self: Mp4Writer, place: int, data: bytes) -> None:
        if "0004" in str(self.path):
            raise OSError(28, "No space left on device")
        write_at(self, place, data)

    write_at = Mp4Writer._write_at
    monkeypatch.setattr("liveavatar.intake.load_image", vanishing)
    monkeypatch.setattr(Mp4Writer, "_write_at", full)
    lines = ({}, {"image": "gone.png"}, {"image": f"{folder}/you.png"}, {}, {"seed": 2})
    metrics = infer(compose("infer", _overrides(folder, *lines)))
    assert metrics["run/finished"] is False
    assert (metrics["requests/finished"], metrics["requests/refused"], metrics["requests/failed"]) == (2, 1, 3)
    rows = _rows(folder)
    assert [row["status"] for row in rows] == ["finished", "refused", "failed", "failed", "finished"]
    assert "list.jsonl, line 2: request.image=gone.png does not exist" in rows[1]["error"]
    assert "you.png does not exist" in rows[2]["error"]
    assert "No space left" in rows[3]["error"]
    about = json.loads((folder / "out" / "0003-you" / "metrics.json").read_text())
    assert about["run/finished"] is False
    assert "you.png does not exist" in about["run/error"]
    assert probe(folder / "out" / "0005-me" / "avatar.mp4")["frames"] == 15


def test_what_is_finished_is_left_out_when_resumed(folder: Path) -> None:
    lines = ({}, {"seed": 4})
    infer(compose("infer", _overrides(folder, *lines)))
    before = (folder / "out" / "0001-me" / "avatar.mp4").stat().st_mtime_ns
    more = ("output.resume=true",)
    metrics = infer(compose("infer", _overrides(folder, {}, {"seed": 5}, {"seed": 6}, more=more)))
    assert [row["status"] for row in _rows(folder)] == ["skipped", "finished", "finished"]
    assert (folder / "out" / "0001-me" / "avatar.mp4").stat().st_mtime_ns == before
    assert (metrics["run/finished"], metrics["requests/skipped"], metrics["requests/failed"]) == (True, 1, 0)
    again = infer(compose("infer", _overrides(folder, {}, {"seed": 5}, {"seed": 6}, more=more)))
    assert (again["requests/skipped"], again["run/finished"]) == (3, True)
    assert "speed/load_s" not in again  # nothing was loaded


def test_exit_codes_of_the_command(folder: Path) -> None:
    done = run_command(*_overrides(folder, {"max_seconds": 0.5}, {"image": "gone.png"}), cwd=folder)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    for words in ("0001-me    finished", "0002-gone  refused", "list.jsonl, line 2: request.image=gone.png"):
        assert words in done.stderr
    done = run_command(
        *_overrides(folder, {"image": "gone.png"}, {"size": "x"}), f"output.dir={folder}/none", cwd=folder
    )
    assert done.returncode == 2, done.stderr
    assert "no request of the list can be met" in done.stderr
    assert "line 1: request.image=gone.png" in done.stderr
    assert "line 2: request.size='x'" in done.stderr
    assert not (folder / "none").exists()


def test_a_division_that_cannot_work_is_refused(folder: Path) -> None:
    def refused(message: str, *more: str) -> None:
        with pytest.raises(ValueError, match=message):
            infer(compose("infer", _overrides(folder, {}, more=more)))

    alone, apart = "requests=null", "parallel.ranks=requests"
    refused(r"parallel\.ranks='both' is unknown", "parallel.ranks=both")
    refused(
        r"parallel\.ranks=requests, but strategy diagonal_pipeline",
        "+strategy=diagonal_pipeline",
        "parallel.ranks=requests",
    )
    refused(r"requests=list\.jsonl", "+strategy=fsdp_stream", apart, alone, "output.latents=null")
    refused(r"parallel\.ranks=requests gives each", "+strategy=fsdp_stream", apart, "parallel.ulysses_size=2")
