"""Clips generated during a training, through the rollout that users run: figures, pictures and videos with sound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from liveavatar.intake import Parts, SpeechSettings
from liveavatar.media.mp4 import Mp4Writer
from liveavatar.models.speech import PcmBuffer, WindowAudio
from liveavatar.models.text import clean_text
from liveavatar.sampling.conditioning import Conditioning, NoPose, RolloutSettings, SinkPlan
from liveavatar.sampling.decoding import StreamDecoding
from liveavatar.sampling.noise import CounterDistance, CounterNoise
from liveavatar.sampling.rollout import Rollout
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.training.draws import DitSettings
from liveavatar.training.grid import save_grid
from liveavatar.training.latents import Encoded
from liveavatar.training.losses import psnr
from liveavatar.types import BLOCK_LATENTS, FPS, SPEECH_RATE


@torch.no_grad()
def preview(
    parts: Parts,
    sampler: EulerSampler,
    rollout: RolloutSettings,
    speech: SpeechSettings,
    clips: Sequence[Encoded],
    settings: DitSettings,
    step: int,
    folder: Path | None,
) -> dict[str, float]:
    """Generate each clip from its portrait, voice and prompt, and compare with the clip as the VAE shows it.

    `psnr` of whole pictures, and `movement`: the deviation in time of the made pictures over that of the true ones,
    which falls to 0 for a frozen face.
    """
    found, rows = [], []
    for number, clip in enumerate(clips):
        blocks = min(settings.held_out_blocks, clip.blocks)
        made = generate(parts, sampler, rollout, speech, clip, blocks, seed=number)
        true = _decoded(parts, clip, clip.latents[None, :, : blocks * BLOCK_LATENTS])
        moved = made.std(dim=2).mean() / true.std(dim=2).mean().clamp_min(1e-6)
        found.append((float(psnr(made, true).mean()), float(moved)))
        for frame in np.linspace(0, made.shape[2] - 1, 6).astype(int):
            rows.append(torch.cat((true[0, :, frame], made[0, :, frame]), dim=1))
        if folder is not None:
            _write(folder / f"dit-{step:06d}-{number}.mp4", torch.cat((true, made), dim=-1), clip)
    if folder is not None:
        save_grid(rows, folder / f"dit-{step:06d}.png", columns=6)
    return {"psnr": float(np.mean([f[0] for f in found])), "movement": float(np.mean([f[1] for f in found]))}


@torch.no_grad()
def generate(
    parts: Parts,
    sampler: EulerSampler,
    rollout: RolloutSettings,
    speech: SpeechSettings,
    clip: Encoded,
    blocks: int,
    seed: int,
) -> Tensor:
    """Frames [1, 3, t, H, W] in [-1, 1] of a clip's own portrait, voice and prompt, `blocks` blocks of them."""
    dit, device = parts.dit, next(parts.dit.parameters()).device
    reference, motion = (x.unsqueeze(0).to(device, dit.dtype) for x in (clip.reference, clip.motion))
    ids = torch.tensor(parts.tokenizer(clean_text(clip.prompt)), device=device)
    audio = WindowAudio(
        parts.speech, [PcmBuffer(clip.sound.to(device))], speech.left_s, speech.right_s, speech.norm_s,
        rollout.lead_frames,
    )  # fmt: skip
    shape = (1, dit.in_dim, BLOCK_LATENTS, *reference.shape[-2:])
    given = Conditioning(
        text=parts.text.encode(ids).unsqueeze(0),
        reference=reference,
        motion=motion,
        audio=audio,
        pose=NoPose(torch.zeros(shape, device=device, dtype=dit.dtype)),
    )
    distance = CounterDistance(seed, *rollout.sink_distance)
    stream = Rollout(dit, given, sampler, rollout, CounterNoise(seed), distance)
    plan = SinkPlan(reference, lambda: motion, refresh=rollout.blocks_per_clip)
    finished = [block.latents for block in stream.blocks(blocks, plan)]
    return _decoded(parts, clip, torch.cat(finished, dim=2))


def _decoded(parts: Parts, clip: Encoded, latents: Tensor) -> Tensor:
    """Pictures of a stream's latents, as inference shows them."""
    like = next(parts.codec.parameters())
    decoding = StreamDecoding(parts.codec, clip.motion.unsqueeze(0).to(like.device, like.dtype))
    frames = [piece.frames for piece in decoding.push(0, latents.to(like.device, like.dtype))]
    return torch.cat(frames, dim=2).float().cpu()


def _write(path: Path, video: Tensor, clip: Encoded) -> None:
    """True and made pictures side by side, with the voice under them."""
    frames = ((video[0].permute(1, 2, 3, 0).clamp(-1, 1) + 1) * 127.5).to(torch.uint8).numpy()
    length = len(frames) * SPEECH_RATE // FPS
    sound = clip.sound[:length].numpy()
    try:
        writer = Mp4Writer(path, frames.shape[2], frames.shape[1], FPS, SPEECH_RATE)
    except ImportError:  # a machine without PyAV: the pictures beside it tell enough
        return
    writer.write(frames, np.pad(sound, (0, length - len(sound))))
    writer.close()
