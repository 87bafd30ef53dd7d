"""One stream of the embedded model in a process of its own, timed from outside the library.

Runs on any checkout: `PYTHONPATH=<checkout> python worker.py '{"seconds": 60, "words": []}'` prints a line of JSON.
A short stream comes first, so that what is timed is warm.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import wave
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WARM_S = 2.0
SPENT: dict[str, float] = defaultdict(float)


def timed(owner: Any, name: str, part: str) -> None:
    """Let the calls of a method count their seconds under `part`."""
    plain: Callable[..., Any] = getattr(owner, name)

    def counted(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return plain(*given, **named)
        finally:
            SPENT[part] += time.perf_counter() - began

    setattr(owner, name, counted)


def watch() -> None:
    """Parts of a block that are told apart."""
    from liveavatar.journal import Journal
    from liveavatar.media.mp4 import Mp4Sink
    from liveavatar.memory.profiler import MemoryProfiler
    from liveavatar.metrics.suite import Suite
    from liveavatar.models.speech import SpeechEncoder

    timed(SpeechEncoder, "hidden_states", "speech")
    timed(Mp4Sink, "write", "video")
    timed(Suite, "write", "metrics")
    timed(Journal, "write", "journal")
    timed(MemoryProfiler, "read", "memory")


def long_voice(folder: Path, seconds: float) -> Path:
    """The demo's voice, again and again."""
    from liveavatar.config import asset
    from liveavatar.media.audio import load_voice

    voice = load_voice(asset("toon.flac"))
    pcm = np.resize(voice.pcm, round(seconds * voice.rate))
    path = folder / "voice.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(voice.rate)
        file.writeframes((pcm.clip(-1, 1) * 32767).astype(np.int16).tobytes())
    return path


def stream(words: list[str], seconds: float, folder: Path) -> dict[str, float]:
    """One request from the beginning: seconds of its parts, and the clock at its first and last frames."""
    from liveavatar.assemble import assemble
    from liveavatar.config import compose

    voice = long_voice(folder, seconds)
    given = [f"request.audio={voice}", f"output.dir={folder}/run{seconds:g}", "fabric.threads=2", *words]
    with assemble(compose("infer", given)) as run:
        began = time.perf_counter()
        run.open()
        opened = time.perf_counter()
        arrivals, frames, spent = [], [], 0.0
        parts: dict[str, float] = defaultdict(float)
        for chunk in run.chunks():
            if not arrivals:  # the first piece pays for the sink, and is told by itself
                SPENT.clear()
                spent = time.process_time()
            else:
                for name in ("denoise", "decode"):
                    parts[name] += chunk.timings[name]
            arrivals.append(time.perf_counter())
            frames.append(len(chunk.frames))
        parts |= {**SPENT, "process": time.process_time() - spent}
        shown = sum(frames[1:]) / 25
        blocks = len(frames) - 1
        found = {
            "rtf": (arrivals[-1] - arrivals[0]) / shown,
            "rtf_all": (arrivals[-1] - began) / (sum(frames) / 25),
            "open_s": opened - began,
            "first_frames_s": arrivals[0] - opened,
            "block_s": (arrivals[-1] - arrivals[0]) / blocks,
        }
    return found | {f"{name}_s": value / blocks for name, value in parts.items()} | {"blocks": blocks}


def main() -> None:
    job = json.loads(sys.argv[1])
    watch()
    with tempfile.TemporaryDirectory() as folder:
        stream(job["words"], WARM_S, Path(folder))
        found = stream(job["words"], job["seconds"], Path(folder))
    import liveavatar

    print("\n" + json.dumps(found | {"checkout": str(Path(liveavatar.__file__).parent.parent)}))


if __name__ == "__main__":
    main()
