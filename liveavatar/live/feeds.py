"""Where sound comes from: recordings and raw streams, pushed into a session as fast as it takes them."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

from liveavatar.live.session import LiveSession
from liveavatar.media.audio import load_voice

log = logging.getLogger(__name__)

_PIECE = 1 << 13
"""Bytes of raw sound that are read at most at once; what is there is taken at once."""


def push_file(session: LiveSession, path: str | Path, timeout: float = math.inf) -> float:
    """Push a recording of any kind; returns its seconds. It waits for room as long as `timeout` says.

    Raises ValueError for what is no sound file, and what `LiveSession.push` raises.
    """
    voice = load_voice(path, "file")
    session.push(voice.pcm, voice.rate, timeout)
    return voice.seconds


def _reader(stream: BinaryIO) -> Callable[[int], bytes]:
    """Reads what there is, up to so many bytes.

    Past the buffer of a file: a thread that waits in there holds a lock without which the program cannot end.
    """
    try:
        return partial(os.read, stream.fileno())
    except OSError:  # it is no file
        return stream.read


class RawFeed:
    """Raw 16-bit little-endian mono sound from a binary stream, such as standard input, in a thread of its own.

    At the end of the stream, or after `max_seconds`, the session is finished; a failure is kept in `error`.
    """

    def __init__(self, session: LiveSession, stream: BinaryIO, rate: int, max_seconds: float | None = None) -> None:
        self.session, self.stream, self.rate = session, stream, rate
        self.left = math.inf if max_seconds is None else 2 * round(max_seconds * rate)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="feed")

    def start(self) -> RawFeed:
        self._thread.start()
        return self

    def _run(self) -> None:
        try:
            self._read()
        except Exception as error:  # noqa: BLE001  told by whoever takes the chunks
            if not self.session.closed:
                self.error = error
        finally:
            self.session.finish()

    def _read(self) -> None:
        read, odd = _reader(self.stream), b""
        while self.left > 0 and (data := read(_PIECE)):
            data = odd + data
            whole = int(min(len(data) // 2 * 2, self.left))
            odd = data[len(data) // 2 * 2 :]
            self.session.push(data[:whole], self.rate, math.inf)
            self.left -= whole
        if odd and self.left > 0:
            log.warning("request.audio=-: half a sample was left over; is it 16-bit sound?")
