"""Where sound enters a live stream: with bounds, and with waiting where they are reached."""

from __future__ import annotations

import threading
from collections.abc import Callable

from liveavatar.live.pace import Clock
from liveavatar.live.settings import LiveSettings
from liveavatar.live.sound import LiveSound, as_mono
from liveavatar.live.stats import Meter
from liveavatar.live.tape import Samples
from liveavatar.types import SPEECH_RATE


class QueueFull(TimeoutError):
    """There was no room for the sound in time. `accepted_s` seconds of it were taken, the rest was not."""

    def __init__(self, message: str, accepted_s: float) -> None:
        super().__init__(message)
        self.accepted_s = accepted_s


class Inlet:
    """Pushes from any thread, one after another; `changed` is the session's lock, notified whenever there is room.

    `epoch` counts interruptions: a push that one of them has overtaken ends, for its sound is not wanted any more.
    `check` raises where the session takes no sound.
    """

    def __init__(
        self,
        sound: LiveSound,
        settings: LiveSettings,
        clock: Clock,
        meter: Meter,
        changed: threading.Condition,
        check: Callable[[], None],
    ) -> None:
        self.sound, self.settings, self.clock, self.meter = sound, settings, clock, meter
        self.changed, self.check, self.epoch = changed, check, 0
        self._pushing = threading.Lock()

    def push(self, pcm: object, rate: int, limit: float) -> None:
        """As `LiveSession.push`."""
        mono, epoch = as_mono(pcm, rate), self.epoch
        # a recording that is longer than the queue goes in piece by piece, and no other sound between
        step = max(1, int(self.settings.queue_s / 4 * rate))
        if not self._pushing.acquire(timeout=min(max(limit, 0.0), threading.TIMEOUT_MAX)):
            with self.changed:
                self.meter.count(refused=1)
            raise QueueFull(self._full(limit), 0.0)
        try:
            for at in range(0, max(1, len(mono)), step):
                if not self._put(mono[at : at + step], rate, limit, at / rate, epoch):
                    with self.changed:
                        self.meter.count(dropped_s=(len(mono) - at) / rate)
                    return
        finally:
            self._pushing.release()

    def _put(self, piece: Samples, rate: int, limit: float, accepted_s: float, epoch: int) -> bool:
        """False where an interruption has come between."""
        asked = self.clock.now()
        with self.changed:
            while True:
                self.check()
                if epoch != self.epoch:
                    return False
                room = self.settings.queue_s - self.sound.queued / SPEECH_RATE
                left = asked + limit - self.clock.now()
                if len(piece) / rate <= room or not self.sound.queued:
                    break
                if left <= 0:
                    self.meter.count(refused=1, waited_s=self.clock.now() - asked)
                    raise QueueFull(self._full(limit), accepted_s)
                self.clock.wait(self.changed, left)
            if len(piece):
                self.sound.append(piece, rate)
            self.meter.queued(self.sound.queued / SPEECH_RATE, self.clock.now() - asked)
            self.changed.notify_all()
        return True

    def _full(self, limit: float) -> str:
        return (
            f"live.queue_s={self.settings.queue_s:g} seconds of sound wait to be spoken, and no room was made within "
            f"{limit:g} s: take chunks from the session in another thread, push less at once, or raise live.queue_s"
        )
