"""Does a long stream keep its level?

    python -m experiments.long_stream.run --out experiments/long_stream --seconds 600

Brightness, contrast and speed of every block, resident and streamed, while the demo's voice is said again and again.
Figures against ground truth are `python -m experiments.embedded.run --part endurance`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from experiments.board import answer, options
from experiments.embedded.cases import write_wav
from liveavatar.config import asset
from liveavatar.media.audio import load_voice
from liveavatar.types import SPEECH_RATE

VARIED = ["+strategy=single_device,fsdp_stream"]
SHOWN = {
    "drift/luma_per_min": "luma, levels a minute",
    "drift/luma_per_min_error": "± its error",
    "drift/contrast_per_min": "contrast, levels a minute",
    "drift/contrast_per_min_error": "± error",
    "drift/colour": "first to last 15 %, ΔE",
    "memory/run/allocated": "peak, MB",
}


def long_voice(path: Path, seconds: float) -> Path:
    """The demo's voice, repeated."""
    voice = load_voice(asset("toon.flac")).at(SPEECH_RATE)
    write_wav(path, np.resize(voice, round(seconds * SPEECH_RATE)))
    return path


def main() -> None:
    assert __doc__
    given = options(__doc__, seconds=60).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        voice = long_voice(Path(folder) / "voice.wav", given.seconds)
        failed = answer(given, [*VARIED, f"request.audio={voice}"], SHOWN, None)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
