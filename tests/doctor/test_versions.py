"""Ranges are read from what the package declares, and held against what is there."""

from __future__ import annotations

from typing import Any

import pytest

from liveavatar.doctor import versions
from liveavatar.doctor.finding import FAIL, NOTE, OK
from liveavatar.doctor.versions import check_pairing, check_versions


def test_this_environment_matches_the_project() -> None:
    found = check_versions()
    names = [each.name for each in found]
    assert {"python", "torch", "torchaudio", "hydra-core", "packaging"} <= set(names)
    assert all(each.state in (OK, NOTE) for each in found), found
    assert check_pairing()[0].state == OK


def test_missing_old_and_optional_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=99", "no-such-thing>=1", 'no-such-extra>=2; extra == "figures"']
    monkeypatch.setattr(versions, "declared", lambda: (">=9.9", lines))
    found = {each.name: each for each in check_versions()}
    assert [found[name].state for name in ("python", "numpy", "no-such-thing")] == [FAIL] * 3
    assert found["numpy"].mend == "pip install 'numpy>=99'"
    assert found["extra figures"].state == NOTE
    assert found["extra figures"].mend == "pip install 'liveavatar[figures]'"


@pytest.mark.parametrize(("torch", "audio", "state"), [("2.11+cu128", "2.11+cpu", FAIL), ("2.11+cpu", "2.11+cpu", OK)])
def test_builds_for_different_platforms(monkeypatch: pytest.MonkeyPatch, torch: str, audio: str, state: str) -> None:
    there: dict[str, Any] = {"torch": torch, "torchaudio": audio}
    monkeypatch.setattr(versions, "version", there.__getitem__)
    assert check_pairing()[0].state == state
