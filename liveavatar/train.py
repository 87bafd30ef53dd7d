"""python -m liveavatar.train: clips in, weights out.

python -m liveavatar.train +experiment=tiny_vae output.dir=runs/vae
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from liveavatar.command import run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

STOPPED = "interrupted; the same command goes on from the last checkpoint"


def train(cfg: DictConfig) -> dict[str, Any]:
    """Run one stage to its end and return its last figures; the same call serves notebooks.

    Raises ValueError, naming the key, for a configuration or data that cannot work, FloatingPointError when the loss
    is no number any more, and OSError when the last checkpoint cannot be written.
    """
    from liveavatar.bare import furnish

    missing = furnish(media=True)
    from liveavatar.training.assembly import train as run  # torch and Lightning are loaded here, and not for --help

    if missing:
        logging.getLogger("liveavatar").info("without %s: no videos among the previews", ", ".join(missing))
    return run(cfg)


def _main(cfg: DictConfig) -> None:
    train(cfg)


def main() -> None:
    """Entry point of `python -m liveavatar.train` and of the console script."""
    run_command("train", _main, interrupted=STOPPED, foreseen=(FloatingPointError,))


if __name__ == "__main__":
    main()
