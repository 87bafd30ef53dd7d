"""Is it live? Speech that arrives as it is spoken, with pauses, on a real clock.

    python -m experiments.live.run --out experiments/live --seconds 300 sampler.steps=2 fabric.threads=2

The demo's voice is pushed in pieces of 20 ms at the pace of the clock, `--speech` seconds of it and then `--pause`
seconds of nothing, again and again, into a session that is kept alive; in a second session all of a piece of speech
comes at once, as of a sentence that was typed. A player that begins with the first chunk and
shows each for as long as it lasts is reckoned beside it. Words after the options are those of the command line.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import liveavatar
from experiments.tables import write
from liveavatar.config import asset
from liveavatar.live.avatar import Avatar
from liveavatar.live.session import LiveSession
from liveavatar.media.audio import PLAYBACK_RATE, load_voice
from liveavatar.memory.readings import Resident
from liveavatar.types import FPS, SPEECH_RATE

PIECE_S, FIRST_S = 0.02, 0.5


@dataclass
class Talk:
    """Pushes speech at the pace of the clock; notes when each piece of speech set in."""

    session: LiveSession
    voice: np.ndarray
    speech_s: float
    pause_s: float
    seconds: float
    burst: bool = False
    begun: list[float] = field(default_factory=list)

    def run(self) -> None:
        step, at, start, spoken = round(PIECE_S * SPEECH_RATE), 0, time.monotonic(), 0.0
        while time.monotonic() - start < self.seconds:
            if spoken == 0.0:
                self.begun.append(time.monotonic())
            piece = np.take(self.voice, range(at, at + step), mode="wrap")
            self.session.push(piece, SPEECH_RATE)
            at, spoken = (at + step) % len(self.voice), spoken + PIECE_S
            due = time.monotonic() if self.burst else self.begun[-1] + spoken
            if spoken >= self.speech_s:
                due, spoken = self.begun[-1] + self.speech_s + self.pause_s, 0.0
            time.sleep(max(0.0, due - time.monotonic()))
        self.session.finish()


@dataclass
class Seen:
    """What a player makes of the chunks, and the memory while they came."""

    arrivals: list[float] = field(default_factory=list)
    begins: list[float] = field(default_factory=list)
    heard: list[float] = field(default_factory=list)  # when sound set in, on the player's clock
    resident: list[tuple[float, int]] = field(default_factory=list)
    work: list[float] = field(default_factory=list)  # seconds of making, without waiting for sound
    pause_s: float = 1.0  # a silence of so long is a pause between two pieces of speech
    quiet_s: float = float("inf")

    def take(self, chunk: Any, now: float, last_s: float | None, resident: int) -> None:
        dry = now if last_s is None else max(now, self.begins[-1] + last_s)
        self.arrivals.append(now)
        self.begins.append(dry)
        loud = np.flatnonzero(np.abs(chunk.audio) > 1e-4) / PLAYBACK_RATE
        if len(loud) and self.quiet_s + loud[0] >= self.pause_s:
            self.heard.append(dry + loud[0])
        whole = len(chunk.audio) / PLAYBACK_RATE
        self.quiet_s = whole - loud[-1] if len(loud) else self.quiet_s + whole
        self.resident.append((now, resident))
        self.work.append(chunk.timings["wall"])


def slope(points: list[tuple[float, int]]) -> tuple[float, float]:
    """MB a minute by least squares over the later half, and the scatter about the line in MB."""
    later = np.array(points[len(points) // 2 :], np.float64)
    if len(later) < 3:
        return 0.0, 0.0
    minutes, held = (later[:, 0] - later[0, 0]) / 60, later[:, 1] / 1e6
    line = np.polyfit(minutes, held, 1)
    return float(line[0]), float(np.std(held - np.polyval(line, minutes)))


def matched(begun: list[float], heard: list[float], period: float) -> list[float]:
    """Seconds from each beginning of speech to the first sound after a pause that a player shows within `period`."""
    found = []
    for start in begun:
        after = [moment - start for moment in heard if 0 <= moment - start < period]
        found += after[:1]
    return found


class Others:
    """What other processes took of the machine meanwhile, in shares of all its cores (Linux; else nan)."""

    def __init__(self) -> None:
        self.before = self._now()

    def _now(self) -> tuple[float, float, float]:
        stat, tick = Path("/proc/stat"), os.sysconf("SC_CLK_TCK")
        own = sum(os.times()[:2])
        if not stat.exists():
            return float("nan"), time.monotonic(), own
        user, nice, system = (int(word) / tick for word in stat.read_text().split()[1:4])
        return user + nice + system, time.monotonic(), own

    def share(self) -> float:
        busy, elapsed, own = (now - then for now, then in zip(self._now(), self.before, strict=True))
        return (busy - own) / (elapsed * (os.cpu_count() or 1))


def measure(avatar: Avatar, seconds: float, speech_s: float, pause_s: float, burst: bool) -> dict[str, Any]:
    voice = load_voice(asset("toon.flac")).at(SPEECH_RATE)
    voice = voice[np.flatnonzero(np.abs(voice) > 1e-3)[0] :]  # it begins with a sound
    settings = replace(avatar.settings, silence="keep_alive")
    began, resident, last = time.monotonic(), Resident(), None
    seen, others = Seen(pause_s=pause_s / 2), Others()
    with avatar.session(settings=settings) as session:
        opened = time.monotonic() - began
        talk = Talk(session, voice, speech_s, pause_s, seconds, burst)
        thread = threading.Thread(target=talk.run)
        thread.start()
        for chunk in session:
            seen.take(chunk, time.monotonic(), last, resident())
            last = len(chunk.frames) / FPS
        thread.join()
        stats = session.stats
    onsets = matched(talk.begun, seen.heard, speech_s + pause_s)
    climb, scatter = slope(seen.resident)
    return {
        "speech": "at once" if burst else "as it is spoken",
        "seconds": seconds,
        "blocks": stats.blocks,
        "session_s": opened,
        "first_after_half_second_s": seen.heard[0] - talk.begun[0] - FIRST_S if seen.heard else float("nan"),
        "onset_median_s": statistics.median(onsets[1:]) if len(onsets) > 1 else float("nan"),
        "onset_worst_s": max(onsets[1:], default=float("nan")),
        "onsets": len(onsets[1:]),
        "stalls": stats.stalls,
        "stall_share": stats.stall_share,
        "work_s": statistics.median(seen.work),
        "work_p95_s": float(np.percentile(seen.work, 95)),
        "block_worst_s": stats.block_peak_s,
        "short_blocks": stats.short_blocks,
        "mb_per_minute": climb,
        "scatter_mb": scatter,
        "held_mb": avatar.cost() / 1e6,
        "others_share": others.share(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--speech", type=float, default=6.0)
    parser.add_argument("--pause", type=float, default=4.0)
    given, words = parser.parse_known_args()
    with liveavatar.load(given.model, words) as avatar:
        known = dict(avatar.loaded.metrics)
        row = {"model": given.model, "words": " ".join(words), "weights": known["weights"]}
        rows = [row | measure(avatar, given.seconds, given.speech, given.pause, burst) for burst in (False, True)]
    print(write(given.out, "realtime", rows, known))


if __name__ == "__main__":
    main()
