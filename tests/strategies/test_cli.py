"""The command line with one process, with several that it starts itself, and with two started by torchrun."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from liveavatar.media.video import read_video
from tests.strategies.launch import clean_environment, free_port

ASKED = (
    "model=micro",
    "sink=none",
    "fabric.accelerator=cpu",
    "fabric.threads=1",
    "request.max_seconds=1",
    "rollout.frames_per_clip=12",  # so that the sink is refreshed within a second
)
STREAM = ("+strategy=fsdp_stream", "strategy.slots=3")


def infer(folder: Path, *options: str, torchrun: int = 0, asked: tuple[str, ...] = ASKED) -> Path:
    """Run `liveavatar.infer` in a folder, and give the file of latents that it left there."""
    before = ["-m", "liveavatar.infer"]
    if torchrun:
        port = f"--master-port={free_port()}"
        before = ["-m", "torch.distributed.run", f"--nproc-per-node={torchrun}", port, *before]
    folder.mkdir()
    command = [sys.executable, *before, *asked, "output.latents=latents.safetensors", *options]
    done = subprocess.run(
        command, cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "latents.safetensors"


def run_directories(folder: Path) -> list[Path]:
    """Folders that look like a run's, wherever they are."""
    return sorted(path.parent for path in folder.rglob("config.yaml"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return infer(tmp_path_factory.mktemp("cli") / "alone", "output.dir=run")


def same_latents(found: Path, expected: Path) -> bool:
    ours, theirs = load_file(found), load_file(expected)
    with safe_open(found, "pt") as file:
        assert file.metadata()["threads"] == "1"
    assert list(ours) == list(theirs) == [f"block_{b:05d}" for b in range(len(theirs))]
    assert len(theirs) >= 3
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def metrics_of(folder: Path) -> dict:
    (directory,) = run_directories(folder)
    return json.loads((directory / "metrics.json").read_text())


def test_two_processes_started_by_the_command_itself(tmp_path: Path, alone: Path) -> None:
    latents = infer(tmp_path / "two", *STREAM, "fabric.devices=2")
    assert same_latents(latents, alone)
    (directory,) = run_directories(tmp_path)
    assert directory.relative_to(tmp_path / "two").parts[0] == "outputs"  # the default, made once
    metrics = metrics_of(tmp_path)
    assert metrics["strategy"] == "fsdp_stream"
    assert metrics["run/finished"] is True
    assert metrics["traffic/received_bytes_per_block"] > 0
    assert metrics["traffic/host_bytes_per_block"] == 0


def test_two_processes_started_by_torchrun(tmp_path: Path, alone: Path) -> None:
    options = ("strategy.source=host", "parallel.hoist=false", "output.dir=run")
    latents = infer(tmp_path / "two", *STREAM, *options, torchrun=2)
    assert same_latents(latents, alone)
    assert run_directories(tmp_path) == [tmp_path / "two" / "run"]
    metrics = metrics_of(tmp_path)
    assert metrics["traffic/host_bytes_per_block"] > 0
    assert metrics["memory/hoisted/device"] == 0
    assert metrics["traffic/received_bytes_per_block"] == 0


def test_the_single_device_moves_nothing(alone: Path) -> None:
    metrics = metrics_of(alone.parent)
    assert run_directories(alone.parent) == [alone.parent / "run"]
    assert metrics["strategy"] == "single_device"
    assert metrics["traffic/unit_fetches_per_block"] == 0
    assert metrics["memory/weights/host"] == 0
    assert metrics["memory/hoisted/device"] > 0


TINY = ("model=tiny", "request.max_seconds=0.9", *(word for word in ASKED if not word.startswith(("model", "request"))))


@pytest.fixture(scope="module")
def tiny_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return infer(tmp_path_factory.mktemp("cli") / "alone", "output.dir=run", asked=TINY)


@pytest.mark.parametrize(
    ("options", "received", "ticks", "busy"),
    [
        (("+strategy=timestep_pipeline", "fabric.devices=2", "strategy.source=peers"), True, 10, 12 / 20),
        (
            ("+strategy=diagonal_pipeline", "fabric.devices=3", "parallel.decode=rank", "strategy.source=host"),
            True,
            17,
            24 / 34,
        ),
        (("+strategy=fsdp_full", "fabric.devices=2", "parallel.schedule=wavefront"), False, 9, 1.0),
        (("+strategy=hsdp_offload", "fabric.devices=2", "strategy.shard_size=2"), False, 12, 1.0),
    ],
    ids=["timestep_pipeline", "diagonal_pipeline", "fsdp_full", "hsdp_offload"],
)
def test_every_strategy_gives_the_latents_of_a_single_device(
    tmp_path: Path, tiny_alone: Path, options: tuple[str, ...], received: bool, ticks: int, busy: float
) -> None:
    latents = infer(tmp_path / "several", *options, "output.dir=run", asked=TINY)
    assert same_latents(latents, tiny_alone)
    assert run_directories(tmp_path) == [tmp_path / "several" / "run"]
    metrics = metrics_of(tmp_path)
    assert options[0] == f"+strategy={metrics['strategy']}"
    assert metrics["run/finished"] is True
    assert (metrics["traffic/received_bytes_per_block"] > 0) is received  # FSDP2 keeps no account
    assert received or metrics["memory/hoisted/device"] == 0  # FSDP2 hoists nothing
    assert metrics["schedule/ticks"] == ticks  # of 3 blocks, the second of which waits for the first
    assert metrics["schedule/utilisation"] == pytest.approx(busy)


def apart(found: Path, expected: Path) -> float:
    """The largest difference of two files of latents."""
    ours, theirs = load_file(found), load_file(expected)
    assert list(ours) == list(theirs)
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


def test_ranks_that_share_cells_and_pictures_hold_half_of_the_caches(tmp_path: Path, tiny_alone: Path) -> None:
    options = ("+strategy=replicated", "fabric.devices=2", "parallel.ulysses_size=2", "parallel.decode=split")
    latents = infer(tmp_path / "two", *options, "output.dir=run", asked=TINY)
    assert apart(latents, tiny_alone) <= 1e-5
    metrics, alone = metrics_of(tmp_path), metrics_of(tiny_alone.parent)
    assert metrics["run/finished"] is True
    assert 2 * metrics["memory/caches/device"] == alone["memory/caches/device"]
    assert metrics["memory/weights/device"] == alone["memory/weights/device"]
    assert metrics["traffic/received_bytes_per_block"] > 0
    said = (tmp_path / "two" / "run" / "run.log").read_text()
    assert "ranks compute by sequence, 2 to a cell, and share the decoding of each picture" in said


def test_a_video_of_shared_pictures_shows_what_one_device_shows(tmp_path: Path) -> None:
    asked = tuple(word for word in ASKED if not word.startswith("sink"))
    alone = infer(tmp_path / "alone", "output.dir=run", asked=asked)
    options = (*STREAM, "fabric.devices=2", "parallel.ulysses_size=2", "parallel.decode=split")
    latents = infer(tmp_path / "two", *options, "parallel.schedule=wavefront", "output.dir=run", asked=asked)
    assert apart(latents, alone) <= 1e-5
    videos = [np.stack(list(read_video(f.parent / "run" / "avatar.mp4"))) for f in (latents, alone)]
    ours, theirs = (video.astype(np.float32) for video in videos)
    assert ours.shape == theirs.shape
    assert theirs.std() > 5
    assert np.abs(ours - theirs).mean() < 0.25  # of 256 levels


def test_a_degree_that_does_not_divide_the_heads_is_told_those_that_do(tmp_path: Path) -> None:
    options = ("+strategy=replicated", "parallel.ulysses_size=3", "output.dir=run")
    command = [sys.executable, "-m", "liveavatar.infer", *TINY, *options]
    done = subprocess.run(
        command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr[-3000:]
    assert "parallel.ulysses_size=3 does not divide the 4 attention heads of the model" in done.stderr
    assert "choose one of 1, 2, 4, and a number of ranks" in done.stderr
    assert "Traceback" not in done.stderr
    assert "weights: random" not in done.stderr


def test_a_cut_that_cannot_work_is_refused_before_weights_load(tmp_path: Path) -> None:
    options = ("+strategy=timestep_pipeline", "parallel.decode=rank", "output.dir=run")
    command = [sys.executable, "-m", "liveavatar.infer", *ASKED, *options]
    done = subprocess.run(
        command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr[-3000:]
    assert "parallel.decode=rank takes a rank of its own: use fabric.devices=2" in done.stderr
    assert "Traceback" not in done.stderr
    assert "weights: random" not in done.stderr  # said when they have come to life


LINES = (
    {"max_seconds": 1.4, "name": "long"},
    {"image": "long.png", "name": "flat"},  # too flat for its area: found when it is fitted, on weights that are loaded
    {"seed": 2, "max_seconds": 0.5, "size": "96*96", "name": "small"},
    {"image": "gone.png"},
)


def _listed(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command with a list of four requests, of which two can be met."""
    folder.mkdir()
    Image.new("RGB", (640, 64)).save(folder / "long.png")
    (folder / "list.jsonl").write_text("\n".join(json.dumps(line) for line in LINES))
    more = ["requests=list.jsonl", "output.dir=run", "output.latents=l.safetensors", "model.size_multiple=16"]
    command = [sys.executable, "-m", "liveavatar.infer", *ASKED, "request.size=128*128", *more, *options]
    return subprocess.run(
        command, cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def listed_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "listed"
    assert _listed(folder).returncode == 1
    return folder / "run"


@pytest.mark.parametrize(
    ("options", "ranks"),
    [(("+strategy=fsdp_stream",), {0, 1}), (("+strategy=diagonal_pipeline",), {0})],
    ids=["fsdp_stream", "diagonal_pipeline"],
)
def test_a_list_of_requests_on_two_ranks(
    tmp_path: Path, listed_alone: Path, options: tuple[str, ...], ranks: set[int]
) -> None:
    done = _listed(tmp_path / "two", *options, "fabric.devices=2")
    assert done.returncode == 1, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert f"parallel.ranks={'requests' if len(ranks) > 1 else 'same'}" in done.stderr
    run = tmp_path / "two" / "run"
    rows = [json.loads(line) for line in (run / "requests.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["finished", "failed", "finished", "refused"]
    assert "no side may be under 64" in rows[1]["error"]
    assert {row["rank"] for row in rows if row["rank"] is not None} == ranks
    for name in ("0001-long", "0003-small"):
        ours, theirs = load_file(run / name / "l.safetensors"), load_file(listed_alone / name / "l.safetensors")
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert (run / name / "run.log").read_text().count("picture") == 1
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["requests/finished"], metrics["requests/failed"], metrics["run/finished"]) == (2, 2, False)
