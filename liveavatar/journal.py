"""metrics.jsonl: a line for each piece of video, under names that do not change, written as it happens."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from liveavatar.types import StreamInfo, VideoChunk

Line = dict[str, Any]


class Journal:
    """A sink that writes one JSON object a piece, flushed at once: what a killed run has measured is on the disk.

    Args:
        path: the file, begun anew.
        asked: what else belongs into a line (memory, traffic), asked once a piece.

    `chunk/*` place the piece (`time_s`: seconds since the sink was opened), `speed/*` are seconds of this piece and
    its frames per second, `picture/*` are means over its frames: `luma` (Rec. 709) and `red`, `green`, `blue` in
    [0, 1], and `contrast`, the standard deviation of luma within a frame.

    Raises:
        OSError: when the file cannot be made or written.
    """

    def __init__(self, path: Path, asked: Callable[[], Mapping[str, Any]] = dict) -> None:
        self.path, self._asked = path, asked
        self._file: TextIO | None = None
        self._began = 0.0
        self.last: Line = {}

    def open(self, info: StreamInfo) -> None:
        self._began = time.perf_counter()
        self._file = self.path.open("w", encoding="utf-8")

    def write(self, chunk: VideoChunk) -> None:
        if self._file is None:
            raise RuntimeError("Journal.write was called before open.")
        self.last = measured(chunk, time.perf_counter() - self._began) | dict(self._asked())
        self._file.write(json.dumps(self.last, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


def measured(chunk: VideoChunk, seconds: float) -> Line:
    """What is known of a piece from itself."""
    frames = len(chunk.frames)
    line: Line = {
        "chunk/index": chunk.index,
        "chunk/frame": chunk.start,
        "chunk/frames": frames,
        "chunk/time_s": seconds,
    }
    line |= {f"speed/{name}_s": spent for name, spent in chunk.timings.items()}
    spent = chunk.timings.get("denoise", 0.0) + chunk.timings.get("decode", 0.0)
    if spent > 0:
        line["speed/fps"] = frames / spent
    return line | picture(chunk)


def picture(chunk: VideoChunk) -> Line:
    """Brightness, contrast and colour of a piece, as its file would show them."""
    levels = (chunk.frames.float().clamp(-1, 1) + 1) / 2
    red, green, blue = (float(value) for value in levels.mean((0, 2, 3)))
    luma = 0.2126 * levels[:, 0] + 0.7152 * levels[:, 1] + 0.0722 * levels[:, 2]
    return {
        "picture/luma": float(luma.mean()),
        "picture/contrast": float(luma.flatten(1).std(1, unbiased=False).mean()),
        "picture/red": red,
        "picture/green": green,
        "picture/blue": blue,
    }


def read_journal(path: Path) -> list[Line]:
    """The whole lines of a metrics.jsonl: the last one of a killed run may be cut, and is left out."""
    lines: list[Line] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines
