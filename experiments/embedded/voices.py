"""How well does the embedded speech encoder hear how a mouth moves, throat by throat?

Its states are read by a line (ridge regression on clips of training voices), at every video frame, in the windows of
inference; slopes far below 1 are mouths that hardly open, whatever the DiT makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from experiments.embedded.cases import Model
from experiments.embedded.measures import pearson
from liveavatar.config import compose, make
from liveavatar.models.speech import SpeechEncoder
from liveavatar.training.data import ToonSource, mouth_curves
from liveavatar.training.sources import Told
from liveavatar.training.speech_stage import curves_until, window_audio
from liveavatar.training.toon import make_clip
from liveavatar.training.toon.voices import VOICES
from liveavatar.types import BLOCK_FRAMES

Row = dict[str, str | float]
TONGUES = ("sv", "fi", "en-gb-scotland", "es-419")
"""Languages never trained on, all of them for each throat."""
STRANGERS = ("Alicia", "Andrea", "anika", "croak", "Gene", "grandma", "Jacky", "klatt3", "Mario", "sandro", "shelby",
             "Storm", "victor", "whisper")  # fmt: skip
"""Throats of espeak-ng in neither training, validation nor test."""
CURVES = ("opening", "width", "rounding")
PENALTY = 5.0


@dataclass(frozen=True)
class Ear:
    """A speech encoder with the line that reads it."""

    states: Callable[[Told], tuple[Float[np.ndarray, "t c"], Float[np.ndarray, "t k"]]]
    mean: Float[np.ndarray, " c"]
    spread: Float[np.ndarray, " c"]
    line: Float[np.ndarray, "c1 k"]

    @classmethod
    def of(cls, encoder: SpeechEncoder, clips: Sequence[Told]) -> Ear:
        """The line that reads `clips` best."""
        hear = hearing(encoder)
        heard, true = (np.concatenate(side) for side in zip(*map(hear, clips), strict=True))
        mean, spread = heard.mean(0), heard.std(0) + 1e-4
        known = _with_one((heard - mean) / spread)
        line = np.linalg.solve(known.T @ known + PENALTY * np.eye(known.shape[1]), known.T @ true)
        return cls(hear, mean, spread, line)

    def reads(self, clip: Told) -> tuple[Float[np.ndarray, "t k"], Float[np.ndarray, "t k"]]:
        """The curves of a clip as they are heard, and as they are."""
        heard, true = self.states(clip)
        return _with_one((heard - self.mean) / self.spread) @ self.line, true


def hearing(encoder: SpeechEncoder) -> Callable[[Told], tuple[np.ndarray, np.ndarray]]:
    """All states of a clip, one row a frame, block by block as inference hears them; and the true curves there."""
    cfg = compose("train", ["+experiment=tiny_speech"])
    given, lead = make(cfg.speech, "speech"), make(cfg.rollout, "rollout").lead_frames

    @torch.no_grad()
    def hear(told: Told) -> tuple[np.ndarray, np.ndarray]:
        audio = window_audio(encoder, torch.from_numpy(told.sound), given, lead)
        blocks = range(len(told.curves) // BLOCK_FRAMES)
        states = torch.cat([audio.heard(audio.sources[0], block).permute(2, 0, 1).flatten(1) for block in blocks])
        return states.float().numpy(), curves_until(told, blocks[-1], len(states), lead)

    return hear


def voices(weights: list[str], count: int, seconds: float) -> list[Row]:
    """A row a throat: those of training (new clips, together), of validation, of test, and of none."""
    model = Model(weights)
    source = ToonSource(120, seconds, 1)
    ear = Ear.of(model.run.session.parts.speech.float(), [source.tell(number) for number in source.kept])
    trained = [_told(500 + n, seconds, voice) for n, voice in enumerate(VOICES["train"][:: max(1, 120 // (4 * count))])]
    rows = [_row("training", trained, ear)]
    for group, throats in (("validation", _throats("validation")), ("test", _throats("test")), ("none", STRANGERS)):
        for throat in throats:
            clips = [
                _told(500 + len(TONGUES) * again + n, seconds, f"{tongue}+{throat}")
                for again in range(count)
                for n, tongue in enumerate(TONGUES)
            ]
            rows.append(_row(f"{group}: {throat}", clips, ear))
    model.close()
    return rows


def _throats(split: str) -> list[str]:
    return list(dict.fromkeys(voice.split("+")[1] for voice in VOICES[split]))


def _told(seed: int, seconds: float, voice: str) -> Told:
    clip = make_clip(seed, seconds, voice, split="test")
    return Told(clip.audio, mouth_curves(clip.motion))


def _row(label: str, clips: Sequence[Told], ear: Ear) -> Row:
    read, true = (np.concatenate(side) for side in zip(*map(ear.reads, clips), strict=True))
    slope = float(np.polyfit(true[:, 0], read[:, 0], 1)[0])
    told = {f"r_{name}": pearson(read[:, n], true[:, n]) for n, name in enumerate(CURVES)}
    return {"what": label, "clips": len(clips), "slope_opening": slope, **told}


def _with_one(rows: Float[np.ndarray, "t c"]) -> Float[np.ndarray, "t c1"]:
    return np.concatenate((rows, np.ones((len(rows), 1))), axis=1)
