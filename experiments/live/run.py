"""Is it live? Speech that arrives as it is spoken, with pauses, on a real clock.

    python -m experiments.live.run --out experiments/live --seconds 300 sampler.steps=2 fabric.threads=2

The demo's voice is pushed in pieces of 20 ms at the pace of the clock, `--speech` seconds of it and then `--pause`
seconds of nothing, again and again, into a session that is kept alive. A player that begins with the first chunk and
shows each for as long as it lasts is reckoned beside it. Words after the options are those of the command line.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import liveavatar
from experiments.live.table import write
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
    begun: list[float] = field(default_factory=list)

    def run(self) -> None:
        step, at, start, spoken = round(PIECE_S * SPEECH_RATE), 0, time.monotonic(), 0.0
        while time.monotonic() - start < self.seconds:
            if spoken == 0.0:
                self.begun.append(time.monotonic())
            piece = np.take(self.voice, range(at, at + step), mode="wrap")
            self.session.push(piece, SPEECH_RATE)
            at, spoken = (at + step) % len(self.voice), spoken + PIECE_S
            due = self.begun[-1] + spoken
            if spoken >= self.speech_s:
                due, spoken = due + self.pause_s, 0.0
            time.sleep(max(0.0, due - time.monotonic()))
        self.session.finish()


@dataclass
class Seen:
    """What a player makes of the chunks, and the memory while they came."""

    arrivals: list[float] = field(default_factory=list)
    begins: list[float] = field(default_factory=list)
    heard: list[float] = field(default_factory=list)  # when sound set in, on the player's clock
    resident: list[tuple[float, int]] = field(default_factory=list)
    silent: bool = True

    def take(self, chunk: Any, now: float, last_s: float | None, resident: int) -> None:
        dry = now if last_s is None else max(now, self.begins[-1] + last_s)
        self.arrivals.append(now)
        self.begins.append(dry)
        loud = np.flatnonzero(np.abs(chunk.audio) > 1e-4)
        if self.silent and len(loud):
            self.heard.append(dry + loud[0] / PLAYBACK_RATE)
        # a pause is a quarter of a second of silence at the end of a chunk
        self.silent = not len(loud) or loud[-1] < len(chunk.audio) - PLAYBACK_RATE // 4
        self.resident.append((now, resident))


def slope(points: list[tuple[float, int]]) -> tuple[float, float]:
    """MB a minute by least squares over the later half, and the scatter about the line in MB."""
    later = np.array(points[len(points) // 2 :], np.float64)
    if len(later) < 3:
        return 0.0, 0.0
    minutes, held = (later[:, 0] - later[0, 0]) / 60, later[:, 1] / 1e6
    line = np.polyfit(minutes, held, 1)
    return float(line[0]), float(np.std(held - np.polyval(line, minutes)))


def measure(avatar: Avatar, seconds: float, speech_s: float, pause_s: float) -> dict[str, Any]:
    voice = load_voice(asset("toon.flac")).at(SPEECH_RATE)
    voice = voice[np.flatnonzero(np.abs(voice) > 1e-3)[0] :]  # it begins with a sound
    settings = replace(avatar.settings, silence="keep_alive")
    began, resident, seen, last = time.monotonic(), Resident(), Seen(), None
    with avatar.session(settings=settings) as session:
        opened = time.monotonic() - began
        talk = Talk(session, voice, speech_s, pause_s, seconds)
        thread = threading.Thread(target=talk.run)
        thread.start()
        for chunk in session:
            seen.take(chunk, time.monotonic(), last, resident())
            last = len(chunk.frames) / FPS
        thread.join()
        stats = session.stats
    onsets = [heard - begun for begun, heard in zip(talk.begun, seen.heard, strict=False)]
    climb, scatter = slope(seen.resident)
    return {
        "seconds": seconds,
        "blocks": stats.blocks,
        "session_s": opened,
        "first_after_half_second_s": seen.heard[0] - talk.begun[0] - FIRST_S if seen.heard else float("nan"),
        "onset_median_s": statistics.median(onsets[1:]) if len(onsets) > 1 else float("nan"),
        "onset_worst_s": max(onsets[1:], default=float("nan")),
        "onsets": len(onsets[1:]),
        "stalls": stats.stalls,
        "stall_share": stats.stall_share,
        "block_s": statistics.median(np.diff(seen.arrivals).tolist() or [0.0]) if stats.blocks > 1 else 0.0,
        "block_worst_s": stats.block_peak_s,
        "short_blocks": stats.short_blocks,
        "mb_per_minute": climb,
        "scatter_mb": scatter,
        "held_mb": avatar.cost() / 1e6,
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
        row |= measure(avatar, given.seconds, given.speech, given.pause)
    print(write(given.out, "realtime", [row], known))


if __name__ == "__main__":
    main()
