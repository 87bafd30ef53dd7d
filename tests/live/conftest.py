"""One avatar for all tests of live sessions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import liveavatar
from liveavatar.live.avatar import Avatar
from tests.live.scene import WORDS
from tests.running import picture


@pytest.fixture(scope="package")
def avatar() -> Iterator[Avatar]:
    with liveavatar.load("micro", WORDS) as loaded:
        yield loaded


@pytest.fixture(scope="package")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return picture(tmp_path_factory.mktemp("portrait") / "me.png")


@pytest.fixture(autouse=True)
def _no_session_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """The avatar is shared: a session that a test leaves open is that test's fault, not the next one's."""
    yield
    if "avatar" in request.fixturenames:
        left = dict(request.getfixturevalue("avatar").sessions)
        for session in left.values():
            session.close()
        assert not left, "this test leaves sessions open"
