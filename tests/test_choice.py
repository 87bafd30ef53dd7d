"""What computes attention: used where it works, said once where it does not, and written down in either case."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from liveavatar.assemble import assemble
from liveavatar.choice import choose_attention
from liveavatar.config import compose
from liveavatar.ops.attention import attend
from tests.running import CPU, SMALL
from tests.scene import make_dit


def test_a_backend_that_works_is_used_and_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("liveavatar"), "propagate", True)  # a run before this one turns it off
    dit = make_dit()
    with caplog.at_level("INFO", logger="liveavatar"):
        assert choose_attention(dit, "math", CPU, torch.float32) == "math"
    assert [record.getMessage() for record in caplog.records] == ["attention: math"]
    assert all(part.attend is not attend for part in dit.modules() if hasattr(part, "attend"))


def test_pytorchs_own_choice_is_named(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("liveavatar"), "propagate", True)
    with caplog.at_level("INFO", logger="liveavatar"):
        assert choose_attention(make_dit(), "auto", CPU, torch.float32) == "auto (flash)"
    assert [record.getMessage() for record in caplog.records] == ["attention: PyTorch chooses, and takes flash"]


def test_a_backend_that_cannot_work_is_said_once_and_pytorch_chooses(tmp_path: Path) -> None:
    words = [*SMALL, "weights=random", "sink=none", "attention.backend=cudnn", f"output.dir={tmp_path}/run"]
    run = assemble(compose("infer", words))
    assert run.metrics["attention"] == "auto (flash)"
    assert run.metrics["compile"] == "none"
    assert all(part.attend is attend for part in run.session.parts.dit.modules() if hasattr(part, "attend"))
    run.strategy.release()
    told = [line for line in (tmp_path / "run" / "run.log").read_text().splitlines() if "attention.backend" in line]
    assert len(told) == 1
    assert "cudnn does not work on cpu with float32" in told[0]
    assert told[0].endswith("PyTorch chooses instead.")


def test_an_unknown_backend_is_refused_before_a_weight_is_read(tmp_path: Path) -> None:
    words = [*SMALL, "weights=published", f"weights.dir={tmp_path}/none", "attention.backend=fast"]
    with pytest.raises(ValueError, match=r"attention\.backend='fast' is unknown; choose one of auto, math, flash"):
        assemble(compose("infer", [*words, f"output.dir={tmp_path}/run"]))
