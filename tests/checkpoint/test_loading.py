"""A checkpoint of the full size on one rank of eight: what a process holds is its share, and little beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOM = 16_295_755_609 * 2
"""Bytes of the DiT in bfloat16."""


@pytest.fixture(scope="module")
def holes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("holes")


@pytest.mark.parametrize("strategy", ["fsdp_stream", "fsdp_full"])
def test_a_rank_holds_its_share_and_little_more(holes: Path, strategy: str) -> None:
    """33 GB of published shards (holes on the disk), rank 0 of 8: the bounds of the checkpoint's promise."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.loading_worker", str(holes), strategy],
        capture_output=True, text=True, timeout=300, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert ROOM / 8 <= found["shard"] <= ROOM / 8 + 1.3e9  # a ring of two units beside the shard, where units stream
    assert found["anonymous"] <= found["shard"] + 1.5e9
    assert found["resident"] <= found["shard"] + 2e9
