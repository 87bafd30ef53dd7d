"""Files that people send, and a server for tests that only look."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

for _name in ("starlette", "uvicorn", "websockets"):
    pytest.importorskip(_name, reason="comes with the extra `ui`")

from tests.ui.serving import Server, serving  # noqa: E402


@pytest.fixture(scope="session")
def files() -> dict[str, bytes]:
    """A picture in three formats and a second of a tone as WAV."""
    made = {}
    for form in ("png", "jpeg", "webp"):
        Image.new("RGB", (120, 100), (200, 40, 60)).save(data := io.BytesIO(), form)
        made[form] = data.getvalue()
    tone = (0.5 * np.sin(2 * np.pi * 220 * np.arange(24_000) / 24_000) * 32767).astype("<i2")
    with wave.open(data := io.BytesIO(), "wb") as file:
        file.setparams((1, 2, 24_000, len(tone), "NONE", ""))
        file.writeframes(tone.tobytes())
    made["wav"] = data.getvalue()
    return made


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running
