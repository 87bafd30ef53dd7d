"""How a live stream behaves (the `live` node). Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True)
class LiveSettings:
    """What becomes of silence, of too much sound, and of time.

    silence: `wait`, blocks are made as soon as their sound is there, and none without it (a file that is being written,
        a consumer that sets the pace); `keep_alive`, the avatar goes on through silence at the pace of the clock.
    queue_s: seconds of sound that may wait to be spoken; a push of more has to wait.
    timeout_s: seconds for which a push waits for room before it gives up.
    rate: samples per second of raw sound (standard input, bytes).
    lead_s: keep_alive only: seconds of video that may be ready ahead of being shown. An interruption cannot reach them.
    margin_s: keep_alive only: seconds before the picture runs dry at which a silent block is ready.
    jitter_s: keep_alive only: seconds of sound to spare when speech sets in, so that sound which arrives in real time
        does not break off when a piece of it is late.
    catch_up_s: for microphones: where more seconds of sound than this wait beyond what a block needs, as after a stall,
        pauses in it are shortened, so that the delay does not grow; None leaves everything as it was pushed.
    Raises ValueError, naming the key, for values that cannot work.
    """

    silence: Literal["wait", "keep_alive"] = "wait"
    queue_s: float = 30.0
    timeout_s: float = 10.0
    rate: int = 16_000
    lead_s: float = 0.5
    margin_s: float = 0.1
    jitter_s: float = 0.08
    catch_up_s: float | None = None

    def __post_init__(self) -> None:
        if self.silence not in ("wait", "keep_alive"):
            raise ValueError(f"live.silence={self.silence!r} is unknown; write live.silence=wait or =keep_alive")
        for field in fields(self):
            value, least = getattr(self, field.name), 1.0 if field.name == "queue_s" else 0.0
            if field.name == "silence" or (field.name == "catch_up_s" and value is None):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"live.{field.name}={value!r} must be a number")
            if value < least:
                raise ValueError(f"live.{field.name}={value} cannot be under {least:g}")
        check_rate(self.rate, "live.rate")


def check_rate(rate: object, key: str = "rate") -> int:
    """A sample rate that sound can have. Raises ValueError, naming `key`, for any other."""
    if isinstance(rate, bool) or not isinstance(rate, int) or not 4_000 <= rate <= 384_000:
        raise ValueError(f"{key}={rate!r} must be a whole number of samples per second, 4000 to 384000, as in 16000")
    return rate
