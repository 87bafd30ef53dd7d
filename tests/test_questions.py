"""The experiments on whole runs write what the runs have measured, and nothing else."""

from __future__ import annotations

import csv
import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from experiments import board
from liveavatar.config import compose
from liveavatar.sweep import members
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
    assert board.answer(given, ["sampler.steps=1,2,3"], ("front",)) == 1
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["config/sampler.steps"], float(row["speed/fps_e2e"])) for row in rows] == [("1", 4.0), ("2", 2.0)]
    assert "sampler.steps=3 is unlucky" in (tmp_path / "out" / "table.md").read_text()
