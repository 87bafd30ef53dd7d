"""The experiments on whole runs write what the runs have measured, and nothing else."""

from __future__ import annotations

import csv
import importlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import board
from experiments.clean_cache.run import KINDS
from experiments.paired import MS, RATIO, side_by_side
from liveavatar.config import compose
from liveavatar.media.mp4 import Mp4Writer
from liveavatar.report import gather
from liveavatar.sweep import members
from liveavatar.types import BLOCK_FRAMES
from tests.running import micro_session, picture, small_request, speech, write_wav
from tests.test_report import make_run

QUESTIONS = ("sampling_steps", "cells_in_flight", "whole_runs", "precision_ladder", "long_stream")


@pytest.mark.parametrize("slug", QUESTIONS)
def test_every_member_of_a_question_composes(slug: str) -> None:
    question = importlib.import_module(f"experiments.{slug}.run")
    found = members(question.VARIED)
    assert len(found) >= 2
    for member in found:
        compose("infer", member.words)


def test_an_answer_is_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(words: Sequence[str], folder: Path) -> tuple[int, str]:
        steps = next(int(word.partition("=")[2]) for word in words if word.startswith("sampler.steps"))
        if steps == 3:
            return 2, "sampler.steps=3 is unlucky"
        shutil.rmtree(folder)
        make_run(folder, "single_device", steps)
        return 0, ""

    whole: Any = board.sweep
    monkeypatch.setattr(board, "sweep", lambda words: whole(words, pretend))
    given = board.options("?", seconds=2).parse_args(["--out", str(tmp_path / "out"), "model=micro"])
    assert board.answer(given, ["sampler.steps=1,2,3"], {"speed/fps_e2e": "frames/s"}, None) == 1
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["config/sampler.steps"], float(row["speed/fps_e2e"])) for row in rows] == [("1", 4.0), ("2", 2.0)]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "sampler.steps=3 is unlucky" in table
    assert "| steps=2 | 2 |" in table
    assert Image.open(tmp_path / "out" / "figure.png").width > 300


def test_videos_are_compared_with_the_trusted_one(tmp_path: Path) -> None:
    frames = np.full((6, 32, 32, 3), 100, np.uint8)
    for name, level in (("0-steps=1", 108), ("1-steps=8", 100)):
        place = make_run(tmp_path / name, "single_device", 1)
        writer = Mp4Writer(place / "avatar.mp4", 32, 32, 25, 0)
        writer.write(frames + np.uint8(level - 100), np.zeros(0, np.float32))
        writer.close()
    board.compare(tmp_path, "steps=8")
    found = {row.name: row for row in gather(tmp_path).rows}
    assert found["1-steps=8"].number("reference/psnr") == 100
    assert found["0-steps=1"].number("reference/psnr") == pytest.approx(20 * np.log10(255 / 8), abs=1.5)
    assert found["0-steps=1"].directions["reference/psnr"] == "higher"
    assert found["0-steps=1"].number("speed/fps_e2e") == 4.0


def test_one_clean_cache_is_another_stream_unless_there_is_one_step(tmp_path: Path) -> None:
    request = small_request(tmp_path, 1.0)
    for steps in (1, 2):
        made, held = {}, {}
        for kind, caches in KINDS.items():
            session = micro_session(steps)
            session.caches = caches
            stream = session.prepare(request)
            made[kind] = torch.cat([chunk.frames for chunk in session.chunks(stream)]).float()
            held[kind] = stream.rollout.caches.held()["caches"][0]
        first = BLOCK_FRAMES - 3  # nothing came before the first block
        assert torch.equal(made["same step"][:first], made["clean"][:first])
        assert torch.equal(made["same step"], made["clean"]) == (steps == 1)
        assert held["same step"] == steps * held["clean"]


def test_costs_are_ratios_to_the_first_member(tmp_path: Path) -> None:
    image, voice = picture(tmp_path / "me.png"), write_wav(tmp_path / "a.wav", speech(1.5))
    for name, steps in (("0-one", 1), ("1-four", 4)):
        words = ["model=micro", f"sampler.steps={steps}", "request.size=64*64", "fabric.threads=1"]
        (tmp_path / name).mkdir()
        (tmp_path / name / "words.json").write_text(
            json.dumps([*words, f"request.image={image}", f"request.audio={voice}"])
        )
        (tmp_path / name / "avatar.mp4").touch()
    found = side_by_side(tmp_path, turns=1)
    assert found["0-one"][RATIO] == 1
    assert found["1-four"][RATIO] > 1  # process seconds of the same rounds
    assert found["1-four"][MS] > found["0-one"][MS] > 0
