"""The embedded weights know drawn faces: any other portrait is taken too, and the person is told what to expect."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from liveavatar.assemble import assemble
from liveavatar.config import asset, compose
from liveavatar.session import AvatarSession
from liveavatar.types import AvatarRequest


@pytest.fixture(scope="module")
def session() -> Iterator[AvatarSession]:
    with assemble(compose("infer", ["sink=none", "fabric.threads=1"])) as run:
        yield run.session


def _told(session: AvatarSession, image: str | Path, caplog: pytest.LogCaptureFixture) -> bool:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "liveavatar"):
        stream = session.prepare(AvatarRequest(Path(image), (Path(asset("toon.flac")),), "", 128 * 128, 0, 0.4))
        assert list(session.chunks(stream))
    return "expect its colours at best" in caplog.text


@pytest.mark.parametrize("name", ["fashion_blogger.jpg", "music_producer.jpg"])
def test_a_photograph_is_taken_with_a_warning(
    session: AvatarSession, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert _told(session, asset(name), caplog)


def test_drawn_people_are_taken_without(
    session: AvatarSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from liveavatar.training.toon import Identity, render_still

    assert not _told(session, asset("toon.jpg"), caplog)
    for seed in (1_000_001, 1_000_002):
        Image.fromarray(render_still(Identity.sample(seed), (256, 256))).save(tmp_path / "drawn.png")
        assert not _told(session, tmp_path / "drawn.png", caplog)


def test_other_weights_say_nothing_of_it(caplog: pytest.LogCaptureFixture) -> None:
    with assemble(compose("infer", ["sink=none", "fabric.threads=1", "weights=random"])) as run:
        assert not _told(run.session, asset("fashion_blogger.jpg"), caplog)
