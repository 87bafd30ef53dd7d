"""When the next blocks of a live stream may be made, and of what sound."""

from __future__ import annotations

from liveavatar.live.pace import Clock, Player
from liveavatar.live.settings import LiveSettings
from liveavatar.live.sound import LiveSound
from liveavatar.live.stats import Meter
from liveavatar.models.speech import WindowAudio
from liveavatar.sampling.conditioning import DROPPED_FRAMES
from liveavatar.types import BLOCK_FRAMES, FPS, SPEECH_RATE

_SAMPLES = SPEECH_RATE // FPS
_BLOCK_SAMPLES = BLOCK_FRAMES * _SAMPLES


class Schedule:
    """Blocks are counted from 0 here; `made` of them are there. Not safe for several threads: the session holds its
    lock. Up to `most` blocks are taken up at once, where their sound is there."""

    def __init__(
        self,
        sound: LiveSound,
        window: WindowAudio,
        settings: LiveSettings,
        clock: Clock,
        player: Player,
        meter: Meter,
        most: int,
    ) -> None:
        self.sound, self.window, self.settings = sound, window, settings
        self.clock, self.player, self.meter, self.most = clock, player, meter, most
        self.made = 0
        self.finished = False
        self._total_s = 0.0
        self._look_ahead = window.span(0)[1] - self.own_end(0)

    def own_end(self, block: int) -> int:
        """The sample at which the frames of a block end."""
        return ((block + 1) * BLOCK_FRAMES - self.window.lead_frames) * _SAMPLES

    def finish(self) -> None:
        """No more sound will come."""
        if not self.finished:
            self.finished, self._total_s = True, self.sound.seconds
            self.sound.end_segment()

    def drop(self, shown: int) -> float:
        """Take back all sound that was not taken up (as `LiveSound.drop`)."""
        dropped = self.sound.drop(shown)
        self._total_s = self.sound.seconds
        return dropped

    @property
    def total_frames(self) -> int | None:
        """Frames of a stream that is finished: as many as a file has whose voice lasts as long. Else None."""
        return max(BLOCK_FRAMES, round(self._total_s * FPS)) if self.finished else None

    @property
    def left(self) -> int:
        """Blocks that are still to be made, at most."""
        total = self.total_frames
        return self.most if total is None else -(-(total + DROPPED_FRAMES) // BLOCK_FRAMES) - self.made

    def patience(self) -> float | None:
        """Seconds until the next block may be made as things stand; None: not before something happens."""
        ready = self.finished or self._ready() > 0
        if self.settings.silence == "wait":
            return 0.0 if ready else None
        now, given = self.clock.now(), self.settings
        dry = self.player.due(now) - self.player.cost
        return dry - (given.lead_s if ready else given.margin_s) - now

    def take(self) -> int:
        """Take up the next blocks, and say how many: from here on their sound cannot change."""
        self._catch_up()
        sound, ready = self.sound, self.left if self.finished else self._ready()
        if not ready:
            self._make_do(self.own_end(self.made))
        count = max(1, min(ready, self.most))
        own = self.own_end(self.made + count - 1)
        sound.fill(own)
        if not ready and sound.open:
            self.meter.count(short_blocks=1)
        sound.taken = own
        return count

    def _catch_up(self) -> None:
        """Leave out silence where more sound waits than `live.catch_up_s` allows."""
        allowed = self.settings.catch_up_s
        if allowed is None or self.finished:
            return
        needed = self.own_end(self.made) + self._look_ahead + round(allowed * SPEECH_RATE)
        if self.sound.end > needed:
            self.meter.count(skipped_s=self.sound.skip_quiet(self.sound.end - needed) / SPEECH_RATE)

    def _ready(self) -> int:
        """Blocks whose sound is there, what they hear ahead included."""
        there = self.sound.end - self._look_ahead - self.own_end(self.made)
        return max(0, there // _BLOCK_SAMPLES + 1)

    def _make_do(self, own: int) -> None:
        """A block is due whose sound is not all there: speech that sets in does so later, what broke off is over."""
        sound, missing = self.sound, own - self.sound.end
        if missing <= 0:
            return
        if sound.open and sound.segment >= sound.taken:
            sound.delay(missing + round(self.settings.jitter_s * SPEECH_RATE))
        elif sound.open:
            self.meter.count(pauses=1)
