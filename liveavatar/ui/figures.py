"""What the server counts, as GET /metrics tells it (Prometheus' text format)."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path

ABOUT = {
    "streams_started_total": ("counter", "Streams that showed a first chunk."),
    "streams_ended_total": ("counter", "Streams that ended, by how: finished, left, failed."),
    "streams_refused_total": ("counter", "Starts that were not taken, by why."),
    "streams": ("gauge", "Streams under way."),
    "waiting": ("gauge", "Visitors in the line."),
    "places": ("gauge", "Streams that the plan has room for."),
    "visitors": ("gauge", "Open WebSockets."),
    "chunks_total": ("counter", "Chunks of video sent."),
    "frames_total": ("counter", "Pictures sent."),
    "sent_bytes_total": ("counter", "Bytes of video sent."),
    "stalls_total": ("counter", "Times that a picture ran dry, of streams that ended."),
    "stalled_seconds_total": ("counter", "Seconds for which it was dry."),
    "first_chunk_seconds_sum": ("counter", "From start to first chunk, added up."),
    "chunk_seconds_sum": ("counter", "Seconds that making chunks took, added up."),
    "interruptions_total": ("counter", "Times that a visitor cut the avatar short."),
    "malformed_total": ("counter", "Messages that were none."),
    "uploads_total": ("counter", "Files sent, by kind and what became of them."),
    "requests_refused_total": ("counter", "Requests that the guard kept out, by why."),
    "recordings_failed_total": ("counter", "Recordings that stopped before their stream did."),
    "engine_up": ("gauge", "1 while the model can be used."),
    "engine_starts_total": ("counter", "Times that the model was loaded."),
    "resident_bytes": ("gauge", "Memory of this process."),
    "plan_bytes": ("gauge", "What the plan foresees for the streams under way."),
    "threads": ("gauge", "Threads of this process."),
    "open_files": ("gauge", "Open file handles of this process."),
}


class Figures:
    """Counters by name and labels. Safe to use from any thread."""

    def __init__(self) -> None:
        self._values: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, by: float = 1, **labels: str) -> None:
        assert name in ABOUT, name
        with self._lock:
            self._values[name, tuple(sorted(labels.items()))] += by  # type: ignore[assignment]

    def get(self, name: str, **labels: str) -> float:
        return self._values.get((name, tuple(sorted(labels.items()))), 0)

    def text(self, now: dict[str, float]) -> str:
        """Counters, and what `now` holds beside them."""
        with self._lock:
            found = dict(self._values)
        found |= {(name, ()): value for name, value in now.items()}  # type: ignore[misc]
        lines = []
        for name, (kind, about) in ABOUT.items():
            rows = sorted((labels, value) for (known, labels), value in found.items() if known == name)
            if not rows and kind == "counter":
                rows = [((), 0)]
            lines += [f"# HELP liveavatar_{name} {about}", f"# TYPE liveavatar_{name} {kind}"] if rows else []
            for labels, value in rows:
                inner = ",".join(f'{key}="{word}"' for key, word in labels)
                lines.append(f"liveavatar_{name}{f'{{{inner}}}' if inner else ''} {value:.15g}")
        return "\n".join(lines) + "\n"


def own() -> dict[str, float]:
    """Memory, threads and file handles of this process, as far as the system tells."""
    found: dict[str, float] = {"threads": threading.active_count()}
    statm, handles = Path("/proc/self/statm"), Path("/proc/self/fd")
    if statm.is_file():
        found["resident_bytes"] = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        found["open_files"] = len(os.listdir(handles))
    return found
