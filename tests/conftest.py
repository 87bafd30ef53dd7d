"""Options and guards that all tests share."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

import tests.shapes

HERE = Path(__file__).resolve().parent

# before anything of the package is imported: shapes written in annotations are checked on every call
install_import_hook(["liveavatar.ops", "liveavatar.models", "liveavatar.sampling"], f"{tests.shapes.__name__}.checked")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--goldens",
        type=Path,
        default=HERE / "data" / "goldens",
        help="folder of golden cases in the published format; every case in it is run (default: the vendored ones)",
    )


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Bit equality holds at equal thread counts: every comparison is made at one."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _log_undone() -> Iterator[None]:
    """A run sends the package's log to its own file; afterwards the log is as at import, and the file is closed."""
    yield
    log = logging.getLogger("liveavatar")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.propagate = True
    log.setLevel(logging.NOTSET)
    logging.disable(logging.NOTSET)
    for name, known in logging.root.manager.loggerDict.items():  # Hydra's `disabled` reaches loggers that exist already
        if name.split(".")[0] == "liveavatar" and isinstance(known, logging.Logger):
            known.disabled = False


MEETING = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "GROUP_RANK",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
)
"""Where processes meet: Fabric leaves these in the process that starts a run, for the processes that it starts."""


@pytest.fixture(autouse=True)
def _no_meeting_is_left() -> Iterator[None]:
    """Runs that a test starts in processes of their own must not meet at the place of one in this process."""
    before = {name: os.environ[name] for name in MEETING if name in os.environ}
    yield
    for name in MEETING:
        os.environ.pop(name, None)
    os.environ.update(before)
