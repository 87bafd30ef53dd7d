"""Clips: a face, a voice, a prompt and the motion that follows from them; corpora of them in disjoint splits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from liveavatar.training.toon import voices
from liveavatar.training.toon.identity import Identity
from liveavatar.training.toon.motion import Motion, idle
from liveavatar.training.toon.prompts import Attributes, act, read_prompt, write_prompt
from liveavatar.training.toon.prosody import follow
from liveavatar.training.toon.render import render, render_still
from liveavatar.training.toon.speech import CURVES, mouth
from liveavatar.training.toon.voices import SOUNDS, SPLITS, VOICES, Sound
from liveavatar.types import FPS, SPEECH_RATE

_SHARES = (0.86, 0.04, 0.05, 0.05)
_FIRST = {split: number * 10_000_000 for number, split in enumerate(SPLITS)}
FACES = 1_000_000
"""Distinct identities of a split."""


@dataclass(frozen=True)
class Clip:
    """A talking face with all that is known of it. `audio` is float32 mono at 16 kHz, as long as the frames.

    `sound` is one of `voices.SOUNDS`, or `recording` for a sound that was given; `voice` names the espeak-ng voice, if
    there is one.
    """

    identity: Identity
    motion: Motion
    audio: Float[np.ndarray, " samples"]
    prompt: str
    seed: int
    attributes: Attributes
    sound: str
    voice: str | None = None
    fps: int = FPS

    def __len__(self) -> int:
        return len(self.motion)

    def frames(self, size: tuple[int, int] = (128, 128), part: slice | None = None) -> UInt8[np.ndarray, "t H W 3"]:
        return render(self.identity, self.motion, size, part)

    def portrait(self, size: tuple[int, int] = (128, 128)) -> UInt8[np.ndarray, "H W 3"]:
        """The neutral face in plain light: what a model is given."""
        return render_still(self.identity, size)


def make_clip(
    seed: int,
    seconds: float,
    voice: str | None = None,
    *,
    text: str | None = None,
    audio: Float[np.ndarray, " samples"] | None = None,
    sound: str | None = None,
    prompt: str | None = None,
    identity: Identity | None = None,
    split: str = "train",
    sway: float = 1.0,
    spoken: tuple[Sound, str | None] | None = None,
) -> Clip:
    """A clip, the same for the same arguments. What is not given, the seed decides.

    Args:
        seed: of everything; `seconds` are rounded to whole frames.
        voice: of espeak-ng, such as `en-us` or `de+f2`; by default one of the split's.
        text: what it says, in the place of sentences of our own.
        audio: a recorded voice at 16 kHz instead: its sound alone moves the mouth, and espeak-ng is not needed.
        sound: `speech`, `silence`, `noise` or `music`; the mouth stays shut in the last three.
        prompt: acted as far as it is understood (`read_prompt`).
        sway: scales the movement of the head; 0 keeps it in place.
        spoken: what `clip_sound` gave for this seed, with its voice, from where it was kept.

    Raises:
        ValueError: for an unknown sound or split, no length, or speech without espeak-ng.
    """
    if split not in SPLITS or (sound is not None and sound not in SOUNDS):
        raise ValueError(
            f"split={split!r}, sound={sound!r}: a split is one of {', '.join(SPLITS)}, "
            f"a sound one of {', '.join(SOUNDS)}."
        )
    frames = round(seconds * FPS)
    if frames < 1:
        raise ValueError(f"seconds={seconds} is not one frame long. Give at least {1 / FPS}.")
    who, asked, _, _, acted = _generators(seed)
    face = identity or Identity.sample(_FIRST[split] + int(who.integers(FACES)))
    wish = Attributes.sample(asked)
    wish = read_prompt(prompt) if prompt is not None else wish
    if audio is not None:
        found, voice = Sound(np.asarray(audio, np.float32), "recording"), None
    else:
        found, voice = spoken or clip_sound(seed, seconds, split, voice, text, sound)
    kind = found.kind
    pcm = np.zeros(round(frames * SPEECH_RATE / FPS), np.float32)
    pcm[: len(found.pcm)] = found.pcm[: len(pcm)]
    sway *= float(acted.uniform(0.7, 1.4))
    motion = idle(seed, frames, sway=sway)
    if kind in ("speech", "recording"):
        lips = mouth(pcm, frames, found.phonemes)
        motion = follow(motion, pcm, sway)
        motion = motion.with_(**lips, brow=motion.brow + 0.12 * (lips["opening"] - 0.25) * (lips["opening"] > 0))
    motion = act(motion, wish, acted)
    text_prompt = prompt if prompt is not None else write_prompt(wish, asked)
    return Clip(face, motion, pcm, text_prompt, int(seed), wish, kind, voice)


def clip_sound(
    seed: int, seconds: float, split: str, voice: str | None = None, text: str | None = None, kind: str | None = None
) -> tuple[Sound, str | None]:
    """What the clip of a seed says, and the voice that says it, if it is a voice (arguments as in `make_clip`)."""
    _, _, heard, said, _ = _generators(seed)
    chosen = VOICES[split][int(heard.integers(len(VOICES[split])))]
    drawn = str(heard.choice(SOUNDS, p=_SHARES))
    kind = kind or ("speech" if voice or text else drawn)
    voice = (voice or chosen) if kind == "speech" else None
    return _sound(kind, said, round(seconds * FPS) / FPS, voice, text), voice


def _generators(seed: int) -> list[np.random.Generator]:
    """One for each choice (face, wish, voice, words, acting): giving one does not change the others."""
    return np.random.default_rng([abs(int(seed)), 7020]).spawn(5)


def _sound(kind: str, rng: np.random.Generator, seconds: float, voice: str | None, text: str | None) -> Sound:
    if kind == "speech" and voice is not None:
        return voices.talk(rng, seconds, voice, text)
    return {"silence": voices.silence, "noise": voices.noise, "music": voices.music}[kind](rng, seconds)


def corpus(seed: int, clips: int, seconds: float, split: str = "train") -> Iterator[Clip]:
    """The clips of a split, one after another: identities, voices and their languages are in no other split.

    Raises:
        ValueError: for an unknown split, or speech without espeak-ng.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not known. Choose among: {', '.join(SPLITS)}.")
    for number in range(clips):
        yield make_clip(_FIRST[split] + seed * 1_000_003 % 9_000_000 + number, seconds, split=split)


__all__ = ["CURVES", "FACES", "Clip", "clip_sound", "corpus", "make_clip"]
