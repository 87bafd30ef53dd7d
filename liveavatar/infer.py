"""python -m liveavatar.infer: a request in, a video with sound out.

python -m liveavatar.infer +strategy=fsdp_stream request.image=me.jpg request.audio=hello.wav request.prompt="…"
… | python -m liveavatar.infer request.audio=-    sound as it comes: 16-bit mono at live.rate, from standard input
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from liveavatar.command import FAILED, run_command
from liveavatar.memory.failure import OutOfMemory
from liveavatar.sweep import asked_for, run_sweep

if TYPE_CHECKING:
    from omegaconf import DictConfig

STOPPED = "interrupted; what was finished is in the file"


def infer(cfg: DictConfig) -> dict[str, Any]:
    """Run one configuration to its end and return its metrics; the same call serves notebooks.

    With `requests` these are the metrics of the whole list: `requests/failed` counts those that did not come through.

    Raises ValueError, naming the key, for a request or configuration that cannot work, and OSError when the output
    cannot be written any more: what was written until then stays playable.
    """
    from liveavatar.assemble import assemble  # torch and Lightning are loaded here, and not for --help

    if cfg.requests is not None:
        from liveavatar.batch import run_requests

        return run_requests(cfg)
    if cfg.request.audio == "-":
        from liveavatar.live.command import run_live

        return run_live(cfg, sys.stdin.buffer)
    with assemble(cfg) as run:
        for _ in run.chunks():
            pass
    if run.directory is not None:
        logging.getLogger("liveavatar.infer").info(summary(run.directory, run.metrics))
    return run.metrics


def summary(directory: Any, metrics: dict[str, Any]) -> str:
    """A run in two lines."""
    speed = (
        f"{metrics['speed/fps_e2e']:.1f} frames/s end to end ({metrics['speed/rtf']:.2f} s per second of video), "
        f"first frame after {metrics['speed/ttff_s']:.2f} s, loading {metrics['speed/load_s']:.2f} s apart"
        if "speed/rtf" in metrics
        else "no frame was made"
    )
    return f"{speed}\n{directory}: {', '.join(sorted(p.name for p in directory.iterdir()))}"


def _main(cfg: DictConfig) -> int:
    return FAILED if infer(cfg).get("requests/failed") else 0


def main() -> None:
    """Entry point of `python -m liveavatar.infer` and of the console script."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the transport's warnings, with the addresses of its calls
    if asked_for(sys.argv[1:]):
        sys.exit(run_sweep(sys.argv[1:]))
    run_command("infer", _main, interrupted=STOPPED, foreseen=(OutOfMemory,))


if __name__ == "__main__":
    main()
