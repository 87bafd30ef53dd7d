"""An hour of stream holds what its first minute held; `experiments/live` has the table of the run that was kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.live.endless import BLOCK_S, measure
from liveavatar.live.avatar import Avatar


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_an_hour_of_stream_holds_no_more_than_its_first_minute(avatar: Avatar, image: Path) -> None:
    rows: list[dict[str, Any]] = []
    measure(avatar, image, round(3600 / BLOCK_S), 0, 6, rows.append)
    assert rows[-1]["stream_minutes"] == pytest.approx(60, abs=0.1)
    for key in ("tensor_bytes", "session_bytes"):
        assert len({row[key] for row in rows}) == 1, rows
    assert rows[-1]["resident_mb"] - rows[0]["resident_mb"] < 5
