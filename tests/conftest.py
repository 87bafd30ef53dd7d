"""Options and guards that all tests share."""

from __future__ import annotations

import logging
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
