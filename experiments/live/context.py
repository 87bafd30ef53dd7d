"""How far is what a block hears through the window from what it hears of the whole recording?

    python -m experiments.live.context --out experiments/live

For the voices that come with the package and windows of several lengths: the distance of the speech features from those
of `speech.context=full`, as a share of their size, and the mean cosine between the two; where the weights are trained,
also how the mouths of the two videos move together, and each with the loudness of the voice (`--sync`; drawn faces).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import liveavatar
from experiments.tables import write
from liveavatar.config import asset
from liveavatar.live.avatar import Avatar
from liveavatar.media.audio import Voice, load_voice
from liveavatar.metrics.toon import mouth_opening
from liveavatar.models.speech import FullAudio, PcmBuffer, WindowAudio
from liveavatar.session import AvatarSession
from liveavatar.types import FPS, SPEECH_RATE, AvatarRequest

VOICES = ("toon.flac", "fashion_blogger.flac", "music_producer.flac")
WINDOWS = ((2.4, 0.32), (2.4, 0.16), (2.4, 0.08), (2.4, 0.0), (4.8, 0.32), (0.96, 0.32))
"""Seconds to the left and to the right; the first is the default, the others what a late sound makes of it."""


def features(avatar: Avatar, voice: Voice, left: float, right: float) -> dict[str, float]:
    """Distance of the window's features from the whole recording's."""
    models = avatar.models
    pcm = torch.from_numpy(voice.at(SPEECH_RATE)).to(models.device)
    lead, norm = models.rollout.lead_frames, models.intake.speech.norm_s
    with torch.no_grad():
        whole = FullAudio(models.parts.speech, [pcm], models.rollout.frames_per_clip, lead)
        window = WindowAudio(models.parts.speech, [PcmBuffer(pcm)], left, right, norm, lead)
        blocks = range(int(voice.seconds * FPS) // 12)
        ours = torch.cat([window.block(block) for block in blocks], dim=-1).double()
        theirs = torch.cat([whole.block(block) for block in blocks], dim=-1).double()
    away = (ours - theirs).norm() / theirs.norm()
    return {"distance": float(away), "cosine": float(torch.cosine_similarity(ours, theirs, dim=2).mean())}


def sync(avatar: Avatar, name: str, seconds: float) -> dict[str, float]:
    """Correlations of mouth openings: of the two videos with one another, and of each with the loudness."""
    voice = load_voice(asset(name)).cut(seconds)
    asked = AvatarRequest(
        Path(avatar.cfg.request.image), (Path(asset(name)),), str(avatar.cfg.request.prompt),
        avatar.size_of()[0] * avatar.size_of()[1], int(avatar.cfg.seed), seconds,
    )  # fmt: skip
    curves = []
    for context in ("full", "window"):
        models = avatar.models
        heard = replace(models.intake.speech, context=context)
        session = AvatarSession(models.parts, models.sampler, models.rollout, heard, models.device)
        curves.append(mouth_opening(np.concatenate([chunk.pixels().numpy() for chunk in session.run(asked)])))
    frames = len(curves[0])
    pcm = np.pad(voice.at(SPEECH_RATE), (0, 640 * frames))[: 640 * frames]
    loud = np.sqrt((pcm.reshape(frames, 640) ** 2).mean(1))
    pairs = {"mouths": (curves[0], curves[1]), "full_loudness": (curves[0], loud), "window_loudness": (curves[1], loud)}
    return {key: float(np.corrcoef(a, b)[0, 1]) for key, (a, b) in pairs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--sync", type=float, default=0.0, help="seconds of video to compare mouths in; 0: none")
    given, words = parser.parse_known_args()
    rows: list[dict[str, Any]] = []
    with liveavatar.load(given.model, words) as avatar:
        known = dict(avatar.loaded.metrics)
        for name in VOICES:
            voice = load_voice(asset(name)).cut(30.0)
            for left, right in WINDOWS:
                row = {"voice": name, "seconds": round(voice.seconds, 1), "left_s": left, "right_s": right}
                rows.append(row | features(avatar, voice, left, right) | {"weights": known["weights"]})
        print(write(given.out, "context", rows, known))
        if given.sync and not avatar.trained:
            print("sync: skipped: the weights are random, and there is no mouth")
        elif given.sync:
            print(write(given.out, "sync", [{"voice": "toon.flac"} | sync(avatar, "toon.flac", given.sync)], known))


if __name__ == "__main__":
    main()
