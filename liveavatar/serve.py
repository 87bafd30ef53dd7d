"""python -m liveavatar.serve: a page on http://localhost:7860 where a portrait speaks while it is being made.

python -m liveavatar.serve +strategy=fsdp_stream sampler.steps=2 server.port=8000
"""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from liveavatar.command import FAILED, Interrupts, run_command, told
from liveavatar.config import first_rank, make

if TYPE_CHECKING:
    from omegaconf import DictConfig

NEEDED = ("starlette", "uvicorn", "websockets")


def serve(cfg: DictConfig, words: list[str]) -> bool:
    """Serve a configuration until interrupted; `words` are the overrides that made it. False where it did not start.

    Raises ValueError, naming the key, for what cannot work.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ValueError(f"the live server needs {', '.join(missing)}: pip install 'liveavatar[ui]'")
    from liveavatar.tracking import start_log
    from liveavatar.ui.app import make_app
    from liveavatar.ui.loading import loader
    from liveavatar.ui.serving import listen, run

    start_log(None)
    settings = make(cfg.server, "server")
    if not first_rank():
        loader(cfg, words, settings)(None)  # only the first rank listens; this one ends with it
    logging.getLogger("liveavatar").handlers[0].setLevel(logging.INFO)
    with listen(settings) as listener:
        app = make_app(settings, loader(cfg, words, settings))
        return run(app, settings, listener)


def main() -> None:
    """Entry point of `python -m liveavatar.serve` and of the console script."""
    composed: list[tuple[DictConfig, list[str]]] = []

    def keep(cfg: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        composed.append((cfg, list(HydraConfig.get().overrides.task)))

    run_command("serve", keep)
    if not composed:  # --help and the like
        return
    code = 0
    with Interrupts():
        try:  # outside Hydra, for visitors have models composed anew
            code = 0 if serve(*composed[0]) else FAILED
        except KeyboardInterrupt:
            pass
        except (ValueError, OSError) as error:
            code = told(error)
    sys.exit(code)


if __name__ == "__main__":
    main()
