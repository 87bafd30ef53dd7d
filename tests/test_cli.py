"""The command line: one run from its words to its files, and how runs end that do not come to their end."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open

from liveavatar.config import compose
from liveavatar.infer import infer
from liveavatar.media.video import probe, read_video
from tests.running import SMALL, command, picture, run_command, speech, write_wav

PROMPT = "A man, smiling: \"hi\" (softly) [x] {y} = z; ${seed} $5 & 100%\nMädchen — it's 'fine' \\ …"
RANKS = ("+strategy=fsdp_stream", "fabric.devices=2", "strategy.timeout_s=60")
ENDLESS_S = 90.0
"""Seconds of a voice whose run is stopped midway: 12 are a matter of three seconds for a fast machine."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture and voices in a folder with a name that needs care."""
    made = tmp_path_factory.mktemp("cli") / "a b, c=d"
    made.mkdir()
    picture(made / "me, you.png", size=(100, 90))
    write_wav(made / "short=1.wav", speech(0.6))
    write_wav(made / "long.wav", speech(12.0))
    write_wav(made / "endless.wav", speech(ENDLESS_S))
    return made


def _arguments(folder: Path, out: Path, voice: str = "short=1.wav") -> list[str]:
    return [*SMALL, f"request.image={folder}/me, you.png", f"request.audio={folder}/{voice}", f"output.dir={out}"]


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run as a user would type it."""
    out = folder / "out, 1"
    more = [f"request.prompt={PROMPT}", f"output.latents={out}/latents.safetensors"]
    return out, run_command(*_arguments(folder, out), *more, cwd=folder)


def test_a_run_ends_well_and_says_what_it_did(finished: tuple[Path, Any]) -> None:
    out, done = finished
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir() if path.name != "memory.png") == [
        "about.json", "avatar.mp4", "config.yaml", "latents.safetensors", "memory.json", "metrics.json",
        "metrics.jsonl", "run.log",
    ]  # fmt: skip
    for words in ("weights: random", "100×90 → 64×64", "frames/s end to end", "avatar.mp4"):
        assert words in done.stderr
        assert words in (out / "run.log").read_text()
    assert done.stdout == ""


def test_the_film_is_as_long_as_the_voice(finished: tuple[Path, Any]) -> None:
    found = probe(finished[0] / "avatar.mp4")
    assert (found["frames"], found["fps"], found["width"], found["height"]) == (15, 25, 64, 64)
    assert abs(found["audio_seconds"] - 0.6) <= 0.04 + 0.022  # a frame, and AAC's own grain


def test_metrics_are_flat_and_complete(finished: tuple[Path, Any]) -> None:
    found = json.loads((finished[0] / "metrics.json").read_text())
    assert all(isinstance(value, (int, float, str, bool)) for value in found.values())
    assert found["run/finished"] is True
    assert (found["weights"], found["strategy"], found["model"]) == ("random", "single_device", "micro")
    assert (found["run/threads"], found["run/ranks"], found["run/precision"]) == (1, 1, "float32")
    for name in ("fps_e2e", "fps_denoise", "ttff_s", "rtf", "load_s", "piece_s_cold", "piece_s_warm"):
        assert found[f"speed/{name}"] > 0
    for name in ("load/host", "encode/host", "prefill/host", "decode/host", "run/host", "decode/allocated",
                 "weights/device", "caches/device"):  # fmt: skip
        assert found[f"memory/{name}"] > 0
    assert found["traffic/unit_fetches_per_block"] == 0
    assert found["speed/rtf"] * found["speed/fps_e2e"] == pytest.approx(25)


def test_the_configuration_is_kept_resolved_and_reads_back(finished: tuple[Path, Any]) -> None:
    found = OmegaConf.load(finished[0] / "config.yaml")
    assert found.request.prompt == PROMPT
    assert found.speech.context == "full"
    assert found.output.dir == str(finished[0])
    assert found.sink.path == f"{finished[0]}/avatar.mp4"
    assert OmegaConf.to_container(found, resolve=False)["seed"] == 0  # a value, and no reference to one


def test_latents_tell_how_to_make_them_again(finished: tuple[Path, Any]) -> None:
    with safe_open(finished[0] / "latents.safetensors", "pt") as file:
        about = file.metadata()
        assert sorted(file.keys()) == ["block_00000", "block_00001"]
        assert file.get_tensor("block_00001").shape == (16, 3, 8, 8)
    assert about["threads"] == "1"
    assert "steps: 1" in about["config"]
    assert OmegaConf.create(about["config"]).request.prompt == PROMPT


def test_the_same_seed_gives_the_same_files(folder: Path, finished: tuple[Path, Any], tmp_path: Path) -> None:
    """Here, in this process; there, in another one."""
    latents = tmp_path / "again.safetensors"
    overrides = [*_arguments(folder, tmp_path), f"request.prompt={PROMPT}", f"output.latents={latents}"]
    metrics = infer(compose("infer", overrides))
    assert metrics["run/finished"]
    with safe_open(latents, "pt") as mine, safe_open(finished[0] / "latents.safetensors", "pt") as theirs:
        assert all(torch.equal(mine.get_tensor(name), theirs.get_tensor(name)) for name in theirs.keys())  # noqa: SIM118
    pairs = zip(read_video(tmp_path / "avatar.mp4"), read_video(finished[0] / "avatar.mp4"), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("+strategy=nope", ("strategy/nope", "fsdp_stream", "single_device")),
        ("request.image=/no/where, at=all.png", ("request.image=/no/where, at=all.png does not exist",)),
        ("request.portrait=me.png", ("request.portrait",)),
    ],
)
def test_a_mistake_is_one_short_message_and_exit_code_2(folder: Path, mistake: str, words: tuple[str, ...]) -> None:
    out = folder / "none"
    done = run_command(*_arguments(folder, out), mistake, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words)
    assert len(done.stderr) < 700
    assert not out.exists()


def _little_room() -> None:
    """Files may grow to 60 kB: a disk that fills up while the film is written."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


@pytest.mark.parametrize("ranks", [(), RANKS], ids=["alone", "two ranks"])
def test_a_full_disk_ends_the_run_and_keeps_the_film(folder: Path, tmp_path: Path, ranks: tuple[str, ...]) -> None:
    arguments = _arguments(folder, tmp_path, "long.wav")
    done = run_command(*arguments, *ranks, cwd=folder, preexec_fn=_little_room)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "output.dir" in done.stderr
    assert "File too large" in done.stderr
    assert 9 <= probe(tmp_path / "avatar.mp4")["frames"] < 200
    assert json.loads((tmp_path / "metrics.json").read_text())["run/finished"] is False


def _stopped(folder: Path, out: Path, how: signal.Signals, ranks: tuple[str, ...]) -> tuple[int, str, int]:
    """Exit code, terminal, and frames on disk when the signal was sent."""
    process = subprocess.Popen(
        command(*_arguments(folder, out, "endless.wav"), *ranks),
        cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    film = out / "avatar.mp4"
    until = time.monotonic() + 120
    while not film.exists() or film.stat().st_size < 8_000:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)
    seen = int(probe(film)["frames"])
    os.killpg(process.pid, how)  # as a terminal does: to all of the processes
    said = process.communicate(timeout=100)[1]
    return process.returncode, said, seen


@pytest.mark.parametrize("ranks", [(), RANKS], ids=["alone", "two ranks"])
def test_an_interrupted_run_closes_its_film(folder: Path, tmp_path: Path, ranks: tuple[str, ...]) -> None:
    code, said, seen = _stopped(folder, tmp_path, signal.SIGINT, ranks)
    assert code == 130, said[-3000:]
    assert "Traceback" not in said
    assert said.count("interrupted") == 1
    found = probe(tmp_path / "avatar.mp4")
    assert max(seen, 9) <= found["frames"] < ENDLESS_S * 25
    assert abs(found["audio_seconds"] - found["video_seconds"]) < 0.07
    assert json.loads((tmp_path / "metrics.json").read_text())["run/finished"] is False


def test_a_killed_run_leaves_a_film_that_plays(folder: Path, tmp_path: Path) -> None:
    code, _, seen = _stopped(folder, tmp_path, signal.SIGKILL, ())
    assert code == -signal.SIGKILL
    found = probe(tmp_path / "avatar.mp4")
    assert found["frames"] >= max(seen, 9)
    assert len(list(read_video(tmp_path / "avatar.mp4"))) == found["frames"]
    assert not (tmp_path / "metrics.json").exists()  # nothing claims that the run came to its end
