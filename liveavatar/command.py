"""The life of a command: its words become a configuration, and what ends it a message and an exit code."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from liveavatar.config import conf_dir, first_rank, quoted, register_resolvers

if TYPE_CHECKING:
    from types import FrameType

    from omegaconf import DictConfig

MISTAKEN, FAILED, INTERRUPTED = 2, 1, 130
"""Exit codes: given what cannot be, gone wrong, ended by ^C."""

TALKATIVE = ("torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer", "torch.utils.cpp_extension")
"""Loggers that speak to developers of other libraries whenever those are imported beside one another."""


def run_command(
    name: str,
    body: Callable[[DictConfig], int | None],
    extra: Sequence[str] = (),
    interrupted: str = "interrupted",
    foreseen: tuple[type[Exception], ...] = (),
) -> None:
    """Run `body` on the configuration `name` as the words after the command make it, and exit as it ended.

    What the body returns is the exit code, None being 0. A ValueError is a mistake of the user's, as is an exit before
    there is a configuration; OSError and what is `foreseen` are told too, in one message; the rest is raised.

    Args:
        extra: words that come after the user's.
        interrupted: what is said after ^C.
    """
    import hydra

    register_resolvers()
    hush()
    sys.argv[1:] = quoted([*sys.argv[1:], *extra])
    composed, interrupts = False, Interrupts()

    @hydra.main(version_base="1.3", config_path=conf_dir(), config_name=name)
    def run(cfg: DictConfig) -> None:
        nonlocal composed
        composed = True
        try:
            code = body(cfg)
        except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  what is not foreseen is raised again
            interrupts.settle()
            if interrupts.seen or isinstance(error, KeyboardInterrupt):
                say(interrupted)
                code = INTERRUPTED
            else:
                code = told(error, foreseen)
        if code:
            sys.exit(code)

    try:
        with interrupts:
            run()
    except SystemExit as ended:
        if ended.code == FAILED and not composed:
            raise SystemExit(MISTAKEN) from None
        raise


def told(error: BaseException, foreseen: tuple[type[Exception], ...] = ()) -> int:
    """Say what went wrong, and return its exit code. Raises what nobody foresaw."""
    if isinstance(error, ValueError):
        say(str(error), error)
        return MISTAKEN
    if isinstance(error, OSError):
        say(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", error)
        return FAILED
    if isinstance(error, foreseen):
        say(str(error), error)
        return FAILED
    raise error


def say(message: str, error: BaseException | None = None) -> None:
    """The message on the terminal, from one rank for all, and in the log file, if there is one, where it came from.

    An error that `tells` is another rank's loss, told by the one that noticed first, or each rank's own.
    """
    came = None if error is None else (type(error), error, error.__traceback__)
    for handler in logging.getLogger("liveavatar").handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.LogRecord("liveavatar", logging.ERROR, __file__, 0, message, (), came))
    if getattr(error, "tells", first_rank()):
        sys.stderr.write(f"liveavatar: {message}\n")


def hush() -> None:
    """Keep what libraries tell one another at import off the screen of a command: it is nothing a user can mend."""
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)


class Interrupts:
    """Sees to it that ^C ends a command. Raised while an object is being deleted it is lost to Python, which prints it
    and goes on; then it is raised once more, a little later. `seen`: one came, whatever was noticed first, such as that
    another rank, which heard it too, has gone.
    """

    AGAIN_S = 0.02

    def __init__(self) -> None:
        self.seen = False
        self._handler, self._hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
        self._alarm: Any = None
        main = threading.current_thread() is threading.main_thread()
        self._ours = main and self._handler is signal.default_int_handler

    def __enter__(self) -> Self:
        if self._ours:
            signal.signal(signal.SIGINT, self._note)
            sys.unraisablehook = self._lost
        return self

    def __exit__(self, *_: object) -> None:
        self.settle()
        if self._ours:
            sys.unraisablehook = self._hook
            signal.signal(signal.SIGINT, self._handler)

    def settle(self) -> None:
        """Nothing is to be interrupted any more."""
        if self._alarm is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._alarm)
            self._alarm = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        while frame is not None:
            if frame.f_code is Interrupts._lost.__code__:  # what is raised in there is lost as well
                self._again()
                return
            frame = frame.f_back
        signal.default_int_handler(number, None)

    def _lost(self, unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._again()
        else:
            self._hook(unraisable)

    def _again(self) -> None:
        """By a signal, since that also ends what the main thread waits in, as a message from another rank."""
        before = signal.signal(signal.SIGALRM, self._note)
        if self._alarm is None:
            self._alarm = before
        signal.setitimer(signal.ITIMER_REAL, self.AGAIN_S)
