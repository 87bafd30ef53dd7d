"""python -m liveavatar.report runs=DIR: what a folder of runs has found, as CSV, Markdown, PNG and one HTML page."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from liveavatar.command import run_command
from liveavatar.report.write import report
from liveavatar.tracking import start_log

if TYPE_CHECKING:
    from omegaconf import DictConfig


def _main(cfg: DictConfig) -> None:
    start_log(None)
    logging.getLogger("liveavatar").handlers[0].setLevel(logging.INFO)
    for module in ("gather", "write"):  # Hydra's `disabled` reaches loggers that exist already
        logging.getLogger(f"liveavatar.report.{module}").disabled = False
    report(cfg.runs, cfg.out, cfg.quality, cfg.title)


def main() -> None:
    """Entry point of `python -m liveavatar.report` and of the console script."""
    run_command("report", _main)


if __name__ == "__main__":
    main()
