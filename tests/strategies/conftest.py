"""Groups of workers, each started once for all tests of a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.strategies.launch import start_group, wait_for


@pytest.fixture(scope="session")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder in which a group of that many ranks has left the results of all its cases."""

    @cache
    def folder_of(world: int) -> Path:
        folder = tmp_path_factory.mktemp(f"world_{world}")
        wait_for(start_group("tests.strategies.workers", world, str(folder)), timeout_s=300)
        return folder

    return folder_of
