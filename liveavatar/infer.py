"""python -m liveavatar.infer: a request in, a video with sound out.

python -m liveavatar.infer +strategy=fsdp_stream request.image=me.jpg request.audio=hello.wav request.prompt="…"
… | python -m liveavatar.infer request.audio=-    sound as it comes: 16-bit mono at live.rate, from standard input
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from liveavatar.config import MISTAKEN, run_command
from liveavatar.memory.failure import OutOfMemory
from liveavatar.sweep import asked_for, run_sweep

if TYPE_CHECKING:
    from types import FrameType

    from omegaconf import DictConfig

INTERRUPTED, FAILED = 130, 1


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


def _main(cfg: DictConfig) -> None:
    interrupts = _Interrupts()
    with interrupts:
        try:
            code = FAILED if infer(cfg).get("requests/failed") else 0
        except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  what is not foreseen is raised again
            interrupts.settle()
            code = _told(error, isinstance(error, KeyboardInterrupt) or interrupts.seen)
    if code:
        sys.exit(code)


def _told(error: BaseException, interrupted: bool) -> int:
    """Say what ended a run, and return its exit code. Raises what nobody foresaw."""
    if interrupted:
        _say("interrupted; what was finished is in the file", None)
        return INTERRUPTED
    if isinstance(error, ValueError):
        _say(str(error), error)
        return MISTAKEN
    if isinstance(error, OSError):
        _say(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", error)
        return FAILED
    if isinstance(error, OutOfMemory):
        _say(str(error), error, everywhere=True)
        return FAILED
    raise error


class _Interrupts:
    """Sees to it that ^C ends a run. Raised while an object is being deleted it is lost to Python, which prints it and
    goes on; then it is sent once more. `seen`: one came, whatever was noticed first, such as that another rank, which
    heard it too, has gone.
    """

    AGAIN_S = 0.02

    def __init__(self) -> None:
        self.seen = False
        self._again: threading.Timer | None = None
        self._handler, self._hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
        main = threading.current_thread() is threading.main_thread()
        self._ours = main and self._handler is signal.default_int_handler

    def __enter__(self) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, self._note)
            sys.unraisablehook = self._lost

    def __exit__(self, *_: object) -> None:
        self.settle()
        if self._ours:
            signal.signal(signal.SIGINT, self._handler)
            sys.unraisablehook = self._hook

    def settle(self) -> None:
        """Nothing is to be interrupted any more."""
        if self._again is not None:
            self._again.cancel()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        signal.default_int_handler(number, frame)

    def _lost(self, unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._hook(unraisable)
            return
        # to the main thread itself: what it waits in, as in a message from another rank, is to be left
        self._again = threading.Timer(self.AGAIN_S, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
        self._again.daemon = True
        self._again.start()


def _say(message: str, error: BaseException | None, everywhere: bool = False) -> None:
    """The message on the terminal, from one rank for all: of a lost rank, from the one that noticed first.

    With `everywhere` each rank has its own to tell. Where it came from goes to the log file, if there is one.
    """
    log = logging.getLogger("liveavatar")
    files = [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]
    if files and error is not None:
        for handler in files:
            handler.handle(logging.LogRecord("liveavatar", logging.ERROR, __file__, 0, message, (), _info(error)))
    from liveavatar.settings import first_rank  # it is loaded by now

    if everywhere or getattr(error, "tells", first_rank()):
        sys.stderr.write(f"liveavatar: {message}\n")


def _info(error: BaseException) -> tuple[type[BaseException], BaseException, Any]:
    return type(error), error, error.__traceback__


def main() -> None:
    """Entry point of `python -m liveavatar.infer` and of the console script."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the transport's warnings, with the addresses of its calls
    if asked_for(sys.argv[1:]):
        sys.exit(run_sweep(sys.argv[1:]))
    run_command("infer", _main)


if __name__ == "__main__":
    main()
