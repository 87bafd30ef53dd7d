"""python -m liveavatar.train: clips in, weights out.

python -m liveavatar.train +experiment=tiny_vae output.dir=runs/vae
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from liveavatar.config import MISTAKEN, run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

INTERRUPTED, FAILED = 130, 1


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
    code = 0
    try:
        train(cfg)
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from the last checkpoint")
        code = INTERRUPTED
    except ValueError as error:
        _say(str(error))
        code = MISTAKEN
    except FloatingPointError as error:
        _say(str(error))
        code = FAILED
    except OSError as error:
        _say(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        code = FAILED
    if code:
        sys.exit(code)


def _say(message: str) -> None:
    """The message on the terminal, once for all ranks, and in the log file, if there is one."""
    log = logging.getLogger("liveavatar")
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.LogRecord("liveavatar", logging.ERROR, __file__, 0, message, (), sys.exc_info()))
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        sys.stderr.write(f"liveavatar: {message}\n")


def main() -> None:
    """Entry point of `python -m liveavatar.train` and of the console script."""
    run_command("train", _main)


if __name__ == "__main__":
    main()
