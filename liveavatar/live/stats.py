"""What a live stream has done so far, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class LiveStats:
    """A reading of a session; seconds and bytes.

    blocks, shown_s: blocks made, and seconds of video in them. silent_blocks: those without a sample of sound.
    pushed_s, queued_s, queued_peak_s: sound that was pushed, that waits, and the most that ever waited.
    dropped_s: sound that interruptions took back; skipped_s: silence that was left out to catch up.
    refused: pushes that found no room within their time.
    waited_s: seconds for which pushes waited for room.
    stalls, stall_s, stall_share: how often and how long the picture ran dry although there was something to make it
        of, and the share of that in the time of the stream.
    short_blocks: blocks that were made with less sound ahead of them than they would have heard (keep_alive).
    pauses: pieces of speech that ended (keep_alive). block_s: seconds that the last block took, and `block_peak_s` the
        most that one did, the first apart.
    latency_s, latency_peak_s: from the arrival of the last sample that a block needed to its pictures.
    first_s: from the beginning of the session to its first pictures. onset_s, onset_peak_s: from the push with which
        speech set in to the first pictures of it.
    held_bytes: caches, decoder and sound of this session alone.
    """

    blocks: int = 0
    shown_s: float = 0.0
    silent_blocks: int = 0
    pushed_s: float = 0.0
    queued_s: float = 0.0
    queued_peak_s: float = 0.0
    dropped_s: float = 0.0
    skipped_s: float = 0.0
    interruptions: int = 0
    refused: int = 0
    waited_s: float = 0.0
    stalls: int = 0
    stall_s: float = 0.0
    stall_share: float = 0.0
    short_blocks: int = 0
    pauses: int = 0
    block_s: float = 0.0
    block_peak_s: float = 0.0
    latency_s: float = 0.0
    latency_peak_s: float = 0.0
    first_s: float | None = None
    onset_s: float | None = None
    onset_peak_s: float | None = None
    held_bytes: int = 0

    def metrics(self) -> dict[str, float]:
        """Flat `live/<name>` values, without those that are not known yet."""
        found = {f"live/{field.name}": getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


class Meter:
    """Keeps the numbers of one session; its owner holds the lock."""

    def __init__(self) -> None:
        self.stats = LiveStats()

    def count(self, **more: float) -> None:
        """Add to some of them."""
        found = {name: getattr(self.stats, name) + add for name, add in more.items()}
        self.stats = replace(self.stats, **found)

    def queued(self, waiting_s: float, waited_s: float) -> None:
        """A push has found room."""
        peak = max(waiting_s, self.stats.queued_peak_s)
        self.stats = replace(self.stats, queued_peak_s=peak, waited_s=self.stats.waited_s + waited_s)

    def made(self, cost: float, latency: float, first: float, onset: float | None, silent: bool) -> None:
        """A block is there: seconds that it took, since its sound had come, since the session began, and since the push
        with which speech sets in in it, if it does."""
        stats = self.stats
        peak = stats.onset_peak_s if onset is None else max(onset, stats.onset_peak_s or 0.0)
        self.stats = replace(
            stats,
            blocks=stats.blocks + 1,
            silent_blocks=stats.silent_blocks + silent,
            block_s=cost,
            block_peak_s=max(stats.block_peak_s, cost) if stats.blocks else 0.0,
            latency_s=latency,
            latency_peak_s=max(stats.latency_peak_s, latency),
            first_s=first if stats.first_s is None else stats.first_s,
            onset_s=stats.onset_s if onset is None else onset,
            onset_peak_s=peak,
        )

    def reading(self, **now: Any) -> LiveStats:
        """All numbers, with those that others keep."""
        return replace(self.stats, **now)
