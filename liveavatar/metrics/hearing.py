"""Sound at 16 kHz beside a video of any rates, and whether somebody speaks: silero-vad, which ships in its wheel."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from jaxtyping import Float

from liveavatar.metrics.suite import Piece

RATE = 16000
WINDOW = 512
"""Samples that silero-vad takes at a time."""
SPOKEN = 0.5
ADVICE = "silero_vad is not installed: pip install 'liveavatar[metrics]'"


class Hearing:
    """The sound of pieces, one after another, at 16 kHz; silence where a piece has none, so that places are kept."""

    def __init__(self) -> None:
        self.heard = False
        self._resampler: soxr.ResampleStream | None = None

    def hear(self, piece: Piece) -> Float[np.ndarray, " samples"]:
        if not len(piece.audio):
            return np.zeros(round(len(piece.frames) * RATE / piece.fps), np.float32)
        self.heard = True
        sound = piece.audio.astype(np.float32)
        if piece.audio_rate == RATE:
            return sound
        if self._resampler is None:
            self._resampler = soxr.ResampleStream(piece.audio_rate, RATE, 1, dtype="float32")
        return self._resampler.resample_chunk(sound)


class Speech:
    """For each frame whether somebody speaks under it; told as soon as the sound under it is there.

    `lacking` says why it cannot tell. The model is loaded from the wheel's file: importing its package would change
    torch's threads, and with them the bits of a run.
    """

    def __init__(self) -> None:
        spec = find_spec("silero_vad")
        file = Path(spec.origin).parent / "data" / "silero_vad.jit" if spec and spec.origin else None
        self.lacking = "" if file is not None and file.is_file() else ADVICE
        self._model: Any = None
        if not self.lacking:
            self._model = torch.jit.load(str(file), map_location="cpu").eval()
        self._pcm, self._likely, self._dropped, self._frame = np.zeros(0, np.float32), [], 0, 0

    @torch.inference_mode()
    def listen(self, pcm: Float[np.ndarray, " samples"], fps: float) -> list[bool]:
        """The next frames whose sound is complete."""
        self._pcm = np.concatenate([self._pcm, pcm.astype(np.float32)])
        while len(self._pcm) >= WINDOW:
            self._likely.append(float(self._model(torch.from_numpy(self._pcm[:WINDOW].copy()), RATE)))
            self._pcm = self._pcm[WINDOW:]
        told = []
        while True:
            first = int(self._frame * RATE / fps) // WINDOW - self._dropped
            last = int(np.ceil((self._frame + 1) * RATE / fps / WINDOW)) - self._dropped
            if last > len(self._likely):
                return told
            told.append(max(self._likely[max(0, first) : last]) >= SPOKEN)
            self._frame += 1
            gone = max(0, first - 1)
            self._likely, self._dropped = self._likely[gone:], self._dropped + gone
