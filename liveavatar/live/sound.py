"""The sound of one live stream: what was pushed, on one line of time with the silences between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import soxr
import torch
from torch import Tensor

from liveavatar.intake import SpeechSettings
from liveavatar.live.settings import check_rate
from liveavatar.live.tape import Samples, Tape
from liveavatar.media.audio import PLAYBACK_RATE
from liveavatar.types import SPEECH_RATE

_TIMES = PLAYBACK_RATE // SPEECH_RATE
_MARK = 320
"""Samples: arrivals closer to one another are noted as one."""

_FADE = PLAYBACK_RATE // 50

_QUIET, _QUIET_FRAME, _KEPT_FRAMES = 0.01, 160, 8
"""Silence is what stays under this level for frames of 10 ms; 80 ms of a pause are kept at either end."""


class LiveSound:
    """Pushed sound at the rate of the speech encoder (a `PcmSource`) and at that of the video file, sample for sample.

    `taken` is the sample up to which pictures have been made or are being made: nothing before it can change. Sound
    that is pushed without a gap is resampled as one piece (soxr, whose numbers do not depend on how it was cut up);
    `segment` is where the newest such piece begins. Not safe for several threads: the session holds its lock.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        self.device, self.clock = device, clock
        self.heard, self.played = Tape(), Tape()
        self.taken = self.segment = 0
        self.pushed_s = 0.0
        self.onsets: deque[tuple[int, float]] = deque(maxlen=64)  # where speech set in, and when it was pushed
        self._marks: deque[tuple[int, float]] = deque()
        self._resampler: _Resampler | None = None

    @property
    def end(self) -> int:
        """The first sample that is not there yet, at one of the two rates."""
        return min(self.heard.end, self.played.end // _TIMES)

    @property
    def queued(self) -> int:
        """Samples that wait for their pictures."""
        return max(0, self.heard.end - self.taken)

    @property
    def open(self) -> bool:
        """Whether the newest piece of sound may still be followed by more without a gap."""
        return self._resampler is not None

    @property
    def seconds(self) -> float:
        """Length of the line of time up to the last sample that was pushed."""
        if self._resampler is None:
            return self.heard.end / SPEECH_RATE
        return self.segment / SPEECH_RATE + self._resampler.seconds

    def append(self, mono: Samples, rate: int) -> None:
        """More sound, behind all that is there."""
        if self._resampler is not None and self._resampler.rate != rate:
            self.end_segment()
        if self._resampler is None:
            self._silence(self.taken)
            self._resampler, self.segment = _Resampler(rate), self.heard.end
            self.onsets.append((self.segment, self.clock()))
        self.pushed_s += len(mono) / rate
        heard, played = self._resampler(mono)
        self.heard.append(heard)
        self.played.append(played)
        self._mark()

    def end_segment(self) -> None:
        """The newest piece of sound is over: what the filters still hold comes out."""
        if self._resampler is None:
            return
        heard, played = self._resampler.rest()
        self.heard.append(heard)
        self.played.append(played)
        self._resampler = None
        self._mark()
        self._silence(self.heard.end)

    def fill(self, until: int) -> None:
        """Silence up to a sample, if there is no sound: later sound comes behind it."""
        if self.end < until:
            self.end_segment()
        self._silence(until)

    def delay(self, samples: int) -> None:
        """Let the newest piece of sound set in later. It must not have been taken yet."""
        assert self.segment >= self.taken
        self.heard.put_in(self.segment, samples)
        self.played.put_in(_TIMES * self.segment, _TIMES * samples)
        self._marks = deque((at + samples if at > self.segment else at, when) for at, when in self._marks)
        self.onsets = deque(
            ((at + samples if at >= self.segment else at, when) for at, when in self.onsets), self.onsets.maxlen
        )
        self.segment += samples

    def skip_quiet(self, most: int) -> int:
        """Leave out up to so many samples of silence that were not taken yet, of pauses that are long enough.

        Returns how many: what comes behind them is spoken sooner.
        """
        waiting = self.heard.read(self.taken, self.end)
        frames = len(waiting) // _QUIET_FRAME
        loud = np.abs(waiting[: frames * _QUIET_FRAME]).reshape(frames, _QUIET_FRAME).max(axis=1) > _QUIET
        edges = np.flatnonzero(np.diff(np.concatenate([[True], loud, [True]]).astype(np.int8)))
        left = most
        for low, high in reversed(list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))):
            at = self.taken + (low + _KEPT_FRAMES) * _QUIET_FRAME
            count = min(left, (high - low - 2 * _KEPT_FRAMES) * _QUIET_FRAME)
            if count > 0:
                self._leave_out(at, count)
                left -= count
        return most - left

    def _leave_out(self, at: int, count: int) -> None:
        self.heard.take_out(at, count)
        self.played.take_out(_TIMES * at, _TIMES * count)
        self._marks = deque((place - count if place > at else place, when) for place, when in self._marks)
        onsets = ((max(at, place - count) if place > at else place, when) for place, when in self.onsets)
        self.onsets = deque(onsets, self.onsets.maxlen)
        self.segment -= count  # so that the end of the piece comes out right

    def drop(self, shown: int) -> float:
        """Take back all that was not taken; what is heard with the pictures falls silent from frame sample `shown` on.

        Returns the seconds that were dropped.
        """
        dropped = max(0, round(self.seconds * SPEECH_RATE) - self.taken) / SPEECH_RATE
        self._resampler = None
        self.heard.cut(self.taken)
        self.played.cut(_TIMES * self.taken)
        self.played.fade(shown, _FADE)
        self._marks = deque(mark for mark in self._marks if mark[0] <= self.taken)
        self.onsets = deque((onset for onset in self.onsets if onset[0] < self.taken), self.onsets.maxlen)
        self.segment = self.heard.end
        return dropped

    def forget(self, heard: int, played: int) -> None:
        """Let go of what lies before these samples of the two."""
        self.heard.forget(heard)
        self.played.forget(played)
        while self._marks and self._marks[0][0] < heard:
            self._marks.popleft()

    def arrival(self, sample: int) -> float | None:
        """When the sound before a sample had arrived; None if it is not sound, or not there."""
        return next((when for at, when in self._marks if at >= sample), None)

    def onset(self, before: int) -> float | None:
        """When the sound was pushed that sets in before a sample; it is told once."""
        found = None
        while self.onsets and self.onsets[0][0] < before:
            found = self.onsets.popleft()[1]
        return found

    def read(self, start: int, stop: int) -> Tensor:
        return torch.from_numpy(self.heard.read(start, stop)).to(self.device)

    @property
    def nbytes(self) -> int:
        return self.heard.nbytes + self.played.nbytes

    def _silence(self, until: int) -> None:
        self.heard.silence(until)
        self.played.silence(_TIMES * self.heard.end)

    def _mark(self) -> None:
        if len(self._marks) > 1 and self.heard.end - self._marks[-2][0] < _MARK:
            self._marks.pop()
        self._marks.append((self.heard.end, self.clock()))


def sound_bytes(queue_s: float, speech: SpeechSettings) -> int:
    """What the sound of a session takes at most: what waits, and what blocks still hear of the past."""
    past = max(speech.left_s, speech.norm_s)
    kept = ((queue_s + past + 1.0) * SPEECH_RATE, (queue_s + 1.0) * PLAYBACK_RATE)
    return sum(4 << int(samples).bit_length() for samples in kept)


class _Resampler:
    """One piece of sound on its way to both rates."""

    def __init__(self, rate: int) -> None:
        self.rate, self.count = rate, 0
        self.given = [0, 0]
        self._streams = [
            None if rate == to else soxr.ResampleStream(rate, to, 1, dtype="float32", quality="HQ")
            for to in (SPEECH_RATE, PLAYBACK_RATE)
        ]

    @property
    def seconds(self) -> float:
        return self.count / self.rate

    def __call__(self, mono: Samples, last: bool = False) -> list[Samples]:
        self.count += len(mono)
        made = [
            mono if stream is None else np.asarray(stream.resample_chunk(mono, last=last), np.float32)
            for stream in self._streams
        ]
        self.given = [given + len(samples) for given, samples in zip(self.given, made, strict=True)]
        return made

    def rest(self) -> list[Samples]:
        """What the filters hold; as many samples in all as a recording of that length has, the last ones silent."""
        before = list(self.given)
        made = self(np.zeros(0, np.float32), last=True)
        wanted = [-(-self.count * to // self.rate) for to in (SPEECH_RATE, PLAYBACK_RATE)]
        return [
            np.pad(samples, (0, max(0, want - had - len(samples))))[: max(0, want - had)]
            for samples, want, had in zip(made, wanted, before, strict=True)
        ]


def as_mono(pcm: object, rate: object) -> Samples:
    """Any sound that may be pushed as float32 samples in [-1, 1]: channels are averaged, as of a file.

    Args:
        pcm: int16 or int32 (their full range), float16 to float64 ([-1, 1]), [samples], [samples, channels] or
            [channels, samples] with at most 8 channels; or bytes, which are 16-bit little-endian mono.
        rate: samples per second.

    Raises:
        ValueError: for anything else, and for samples that are NaN or infinite.
    """
    check_rate(rate)
    if isinstance(pcm, (bytes, bytearray, memoryview)):
        if len(pcm) % 2:
            raise ValueError(f"{len(pcm)} bytes are no whole number of 16-bit samples: keep the odd byte for the next")
        pcm = np.frombuffer(pcm, "<i2")
    sound = np.asarray(pcm)
    scale = {"int16": 2.0**15, "int32": 2.0**31}.get(sound.dtype.name, 1.0 if sound.dtype.kind == "f" else 0.0)
    if not scale:
        raise ValueError(f"sound of type {sound.dtype} is not known: give int16, int32 or float32 in [-1, 1]")
    if sound.ndim == 2 and min(sound.shape) <= 8:
        sound = sound.astype(np.float64).mean(axis=1 if sound.shape[1] <= sound.shape[0] else 0)
    if sound.ndim != 1:
        raise ValueError(f"sound of shape {sound.shape} is not known: give [samples] or [samples, channels]")
    mono = (sound.astype(np.float64) / scale).astype(np.float32)
    if not np.isfinite(mono).all():
        raise ValueError("the sound holds samples that are NaN or infinite: it is not played")
    return mono
