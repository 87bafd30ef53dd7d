"""`python -m liveavatar.training.toon`: a contact sheet of faces, a clip with its sound, or the sounds of many."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from liveavatar.media.audio import load_voice
from liveavatar.media.mp4 import Mp4Writer
from liveavatar.training.toon import Clip, Identity, Motion, make_clip, render
from liveavatar.training.toon.kept import keep_sounds
from liveavatar.training.toon.prompts import EMOTIONS, Attributes, act
from liveavatar.types import FPS, SPEECH_RATE

log = logging.getLogger(__name__)

_MOUTHS: tuple[dict[str, float], ...] = (
    {},
    {"opening": 0.95, "width": 0.3, "teeth": 0.3},
    {"opening": 0.3, "width": 1.0, "teeth": 0.7},
    {"opening": 0.4, "rounding": 1.0},
    {"opening": 0.3, "tongue": 1.0, "teeth": 0.4},
)


def contact_sheet(seed: int, faces: int = 8, size: int = 160) -> np.ndarray:
    """A row per face [faces * size, 10 * size, 3]: mouth shapes, miens (each in another light), a blink."""
    rows = []
    for number in range(faces):
        who = Identity.sample(seed + number)
        shots = [Motion.neutral(1, **mouth) for mouth in _MOUTHS]
        rng = np.random.default_rng(0)
        for emotion, light in zip(EMOTIONS[1:], ("warm", "blue", "plain", "dim"), strict=True):
            shots.append(act(Motion.neutral(1, opening=0.15), Attributes(emotion, light), rng))
        shots.append(Motion.neutral(1, blink=1.0, roll=0.05, turn=0.5))
        rows.append(np.concatenate([render(who, shot, (size, size))[0] for shot in shots], axis=1))
    return np.concatenate(rows)


def save_clip(clip: Clip, path: Path, size: tuple[int, int]) -> None:
    """Write an MP4 with its sound, a second at a time."""
    writer = Mp4Writer(path, size[1], size[0], clip.fps, SPEECH_RATE)
    try:
        for start in range(0, len(clip), FPS):
            heard = slice(start * SPEECH_RATE // FPS, (start + FPS) * SPEECH_RATE // FPS)
            writer.write(clip.frames(size, slice(start, start + FPS)), clip.audio[heard])
    finally:
        writer.close()


def _asked(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python -m liveavatar.training.toon", description=__doc__)
    parser.add_argument("--preview", type=Path, metavar="PNG", help="draw a contact sheet: faces by mouths and miens")
    parser.add_argument("--portrait", type=Path, metavar="PNG", help="draw the neutral face of the seed")
    parser.add_argument("--clip", type=Path, metavar="MP4", help="write a talking clip with its sound")
    parser.add_argument("--sounds", type=Path, metavar="DIR", help="keep what --count clips from --seed on say")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="length of the clip (default: 6, or the recording's)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="multiples of 16")
    parser.add_argument("--audio", type=Path, help="a recorded voice that moves the mouth")
    parser.add_argument("--text", help="what to say, by espeak-ng")
    parser.add_argument("--voice", help="a voice of espeak-ng, such as en-us or de+f2")
    parser.add_argument("--prompt", help="for instance: a happy person, nodding, in warm light")
    parser.add_argument("--split", default="train", help="train, validation or test: whose faces and voices")
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    parser, asked = _asked(arguments)
    if not (asked.preview or asked.clip or asked.portrait or asked.sounds):
        parser.error("say what to make: --preview sheet.png, --portrait face.png, --clip talk.mp4 or --sounds folder")
    try:
        _draw(asked)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")


def _draw(asked: argparse.Namespace) -> None:
    if asked.sounds:
        seeds = range(asked.seed, asked.seed + asked.count)
        made = keep_sounds(asked.sounds, seeds, asked.seconds or 6.0, asked.split)
        log.info("%s: %d sounds kept, %d were there.", asked.sounds, made, asked.count - made)
    if asked.preview:
        size = asked.size[0] if asked.size else 160
        Image.fromarray(contact_sheet(asked.seed, size=size)).save(asked.preview)
        log.info("%s: a contact sheet from seed %d.", asked.preview, asked.seed)
    if not (asked.clip or asked.portrait):
        return
    size = tuple(asked.size) if asked.size else (256, 256)
    sound, seconds = None, asked.seconds or 6.0
    if asked.audio:
        voice = load_voice(asked.audio, key="--audio").cut(asked.seconds)
        sound, seconds = voice.at(SPEECH_RATE), asked.seconds or voice.seconds
    if asked.portrait and not asked.clip:
        clip = make_clip(asked.seed, 1 / FPS, sound="silence", split=asked.split)
    else:
        clip = make_clip(
            asked.seed, seconds, asked.voice, text=asked.text, audio=sound, prompt=asked.prompt, split=asked.split,
            sound=None if asked.audio else "speech",
        )  # fmt: skip
    if asked.portrait:
        Image.fromarray(clip.portrait(size)).save(asked.portrait)
        log.info("%s: the face of seed %d.", asked.portrait, asked.seed)
    if asked.clip:
        save_clip(clip, asked.clip, size)
        log.info("%s: %.1f s, %s: %s", asked.clip, len(clip) / FPS, clip.voice or clip.sound, clip.prompt)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    main()
