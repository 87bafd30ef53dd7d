"""Sessions that several ranks make together give what one device gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import liveavatar
from tests.live.ranks import CASES, COMMON, streams
from tests.strategies.launch import start_group, wait_for


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory, image: Path) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    wait_for(start_group("tests.live.ranks", 2, str(folder), str(image)), timeout_s=500)
    return folder


@pytest.fixture(scope="module")
def alone(image: Path) -> dict[bool, dict[str, torch.Tensor]]:
    """What one device gives, with a prompt that changes and without."""
    with liveavatar.load("micro", COMMON) as avatar:
        return {changes: streams(avatar, image, changes) for changes in (True, False)}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_give_the_streams_of_one(worked: Path, alone: dict[bool, dict[str, torch.Tensor]], name: str) -> None:
    found, expected = load_file(worked / f"{name}.safetensors"), alone[name != "layers"]
    assert found.keys() == expected.keys()
    assert len(found) == 3 * 5 + 1
    for key in found:
        if key == "frames" and name == "split":
            assert float((found[key] - expected[key]).abs().max()) < 3e-5  # seams are exact; the order of sums differs
        else:
            assert torch.equal(found[key], expected[key]), key
